"""How does a plan become batches on the device, from memory and from a back end?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .feed import DeviceFeed, HostFeed, Part
from .protocol import BackEnd, IntArray
from .resident import Resident

Plan = Iterator[IntArray]  # rows of the back end, one array per batch


class BatchReader:
    """Reads rows from where they are: kept on the device, kept in RAM, or from the back end.

    Args:
        back_end: has every row.
        resident: what is kept in memory; None for nothing.
        device: where batches are needed.
    """

    def __init__(self, back_end: BackEnd, resident: Resident | None, device: torch.device) -> None:
        self._back_end = back_end
        self._resident = resident
        self._device = device
        self._in_ram = resident is not None and resident.images.device != device

    @contextmanager
    def read(self, plan: Callable[[], Plan], classes: Sequence[int]) -> Iterator[Iterator[Tensor]]:
        """Open a plan: one uint8 tensor ``(len(rows), C, H, W)`` per array, on the device.

        Each is valid until the next is asked for. What is not on the device is read ahead.

        Args:
            plan: gives the same plan every time: each source goes through its own.
            classes: those the plan may name.

        Raises:
            DataError: from the iterator, if reading fails.
        """
        resident = self._resident
        held = resident.holds[list(classes)] if resident else np.zeros(1, np.bool_)
        none: AbstractContextManager[Iterator[Tensor]] = nullcontext(iter(()))
        with ExitStack() as stack:
            streamed = stack.enter_context(
                none if held.all() else self._back_end.read(self._only(plan(), resident=False))
            )
            kept = stack.enter_context(
                resident.read(self._only(plan(), resident=True))
                if resident and self._in_ram and held.any()
                else none
            )
            # entered last and left first: nothing is copied out of buffers that are gone
            feed = self._feed()
            stack.enter_context(feed)
            yield self._assembled(plan(), feed, streamed, kept)

    def _feed(self) -> HostFeed | DeviceFeed:
        shape, layout = self._back_end.image_shape, self._back_end.layout
        if self._device.type == "cuda":
            return DeviceFeed(shape, layout, self._device)
        return HostFeed(shape, layout)

    def _only(self, plan: Plan, *, resident: bool) -> Plan:
        for rows in plan:
            chosen = rows[self._held(rows) == resident]
            if len(chosen):
                yield chosen

    def _held(self, rows: IntArray) -> np.ndarray:
        if self._resident is None:
            return np.zeros(len(rows), np.bool_)
        return self._resident.places[rows] >= 0

    def _assembled(
        self,
        plan: Plan,
        feed: HostFeed | DeviceFeed,
        streamed: Iterator[Tensor],
        kept: Iterator[Tensor],
    ) -> Iterator[Tensor]:
        for rows in plan:
            held = self._held(rows)
            feed.finish_copies()
            # what each source has of this batch, and how much of it was used
            sources = {
                False: None if held.all() else next(streamed),
                True: next(kept) if self._in_ram and held.any() else None,
            }
            used = {False: 0, True: 0}
            changes = np.flatnonzero(np.diff(held)) + 1
            bounds = [0, *changes.tolist(), len(rows)] if len(rows) else []
            parts = []
            for start, stop in pairwise(bounds):
                which = bool(held[start:stop].any())
                source = sources[which]
                if source is None:
                    parts.append(self._on_device(slice(start, stop), rows))
                else:
                    images = source[used[which] : used[which] + stop - start]
                    used[which] += stop - start
                    parts.append(Part(slice(start, stop), images, None))
            yield feed(len(rows), parts)

    def _on_device(self, where: slice, rows: IntArray) -> Part:
        assert self._resident is not None
        places = self._resident.places[rows[where]].astype(np.int64)
        return Part(where, self._resident.images, torch.from_numpy(places))
