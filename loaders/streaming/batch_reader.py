"""How does a plan become batches on the device, from memory and from a back end?"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..protocol import BackEnd, IntArray
from .feed import DeviceFeed, HostFeed, Part
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
            plan: gives the same plan every time, of arrays that are not empty. Where there are
                several sources each goes through its own.
            classes: those the plan may name.

        Raises:
            DataError: from the iterator, if reading fails.
        """
        resident = self._resident
        held = resident.holds[list(classes)] if resident else np.zeros(1, np.bool_)
        kept_reader = resident.read if resident and self._in_ram and held.any() else None
        feed = self._feed()
        with ExitStack() as stack:
            if not held.any() or (kept_reader and held.all()):
                tensors = stack.enter_context((kept_reader or self._back_end.read)(plan()))
                batches = _as_they_come(tensors, feed)
            else:
                streamed: Iterator[Tensor] = iter(())
                kept: Iterator[Tensor] = iter(())
                if not held.all():
                    only = self._only(plan(), resident=False)
                    streamed = stack.enter_context(self._back_end.read(only))
                if kept_reader:
                    kept = stack.enter_context(kept_reader(self._only(plan(), resident=True)))
                batches = self._assembled(plan(), feed, streamed, kept)
            # entered last and left first: nothing is copied out of buffers that are gone
            stack.enter_context(feed)
            yield batches

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
        assert self._resident is not None
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
            bounds = [0, *changes.tolist(), len(rows)]
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


def _as_they_come(tensors: Iterator[Tensor], feed: HostFeed | DeviceFeed) -> Iterator[Tensor]:
    """Batches of one source, whole."""
    while True:
        feed.finish_copies()
        images = next(tensors, None)
        if images is None:
            return
        yield feed(len(images), [Part(slice(0, len(images)), images, None)])
