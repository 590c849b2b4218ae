"""Batches on the device, of images kept in memory and images read from a back end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..protocol import BackEnd, IntArray
from .assembly import DeviceAssembler, HostAssembler, Part
from .resident import Resident

Assembler = HostAssembler | DeviceAssembler


class BatchReader:
    """Reads every row where it is: kept on the device, kept in RAM, or in the back end.

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
    def read(
        self, iterate_rows: Callable[[], Iterator[IntArray]], classes: Sequence[int]
    ) -> Iterator[Iterator[Tensor]]:
        """Read batches: one uint8 tensor ``(len(rows), C, H, W)`` per array, on the device.

        Each is valid until the next is requested. What is not on the device is read ahead.

        Args:
            iterate_rows: gives the same arrays of rows every time, none of them empty; each of
                several sources iterates over them separately.
            classes: those the rows may belong to.

        Raises:
            DataError: from the iterator, if reading fails.
        """
        resident = self._resident
        kept = resident.classes[list(classes)] if resident else np.zeros(1, np.bool_)
        read_kept = resident.read if resident and self._in_ram and kept.any() else None
        assembler = self._open_assembler()
        with ExitStack() as stack:
            if not kept.any() or (read_kept and kept.all()):
                read_all = read_kept or self._back_end.read
                batches = _move(stack.enter_context(read_all(iterate_rows())), assembler)
            else:
                from_back_end: Iterator[Tensor] = iter(())
                from_ram: Iterator[Tensor] = iter(())
                if not kept.all():
                    rows = self._select(iterate_rows(), kept=False)
                    from_back_end = stack.enter_context(self._back_end.read(rows))
                if read_kept:
                    rows = self._select(iterate_rows(), kept=True)
                    from_ram = stack.enter_context(read_kept(rows))
                batches = self._merge(iterate_rows(), assembler, from_back_end, from_ram)
            # entered last and left first: nothing is copied out of buffers that are freed
            stack.enter_context(assembler)
            yield batches

    def _open_assembler(self) -> Assembler:
        shape, layout = self._back_end.image_shape, self._back_end.layout
        if self._device.type == "cuda":
            return DeviceAssembler(shape, layout, self._device)
        return HostAssembler(shape, layout)

    def _select(self, row_batches: Iterator[IntArray], *, kept: bool) -> Iterator[IntArray]:
        for rows in row_batches:
            selected = rows[self._are_kept(rows) == kept]
            if len(selected):
                yield selected

    def _are_kept(self, rows: IntArray) -> np.ndarray:
        assert self._resident is not None
        return self._resident.index[rows] >= 0

    def _merge(
        self,
        row_batches: Iterator[IntArray],
        assembler: Assembler,
        from_back_end: Iterator[Tensor],
        from_ram: Iterator[Tensor],
    ) -> Iterator[Tensor]:
        """Batches of images from several sources."""
        for rows in row_batches:
            kept = self._are_kept(rows)
            assembler.finish_copies()
            # what each source has of this batch, and how much of it was used
            sources = {
                False: None if kept.all() else next(from_back_end),
                True: next(from_ram) if self._in_ram and kept.any() else None,
            }
            used = {False: 0, True: 0}
            changes = np.flatnonzero(np.diff(kept)) + 1
            bounds = [0, *changes.tolist(), len(rows)]
            parts = []
            for start, stop in pairwise(bounds):
                which = bool(kept[start:stop].any())
                source = sources[which]
                if source is None:
                    parts.append(self._index_device(slice(start, stop), rows))
                else:
                    images = source[used[which] : used[which] + stop - start]
                    used[which] += stop - start
                    parts.append(Part(slice(start, stop), images, None))
            yield assembler.assemble(len(rows), parts)

    def _index_device(self, positions: slice, rows: IntArray) -> Part:
        assert self._resident is not None
        indices = self._resident.index[rows[positions]].astype(np.int64)
        return Part(positions, self._resident.images, torch.from_numpy(indices))


def _move(tensors: Iterator[Tensor], assembler: Assembler) -> Iterator[Tensor]:
    """Batches of one source, whole."""
    while True:
        assembler.finish_copies()
        images = next(tensors, None)
        if images is None:
            return
        yield assembler.assemble(len(images), [Part(slice(0, len(images)), images, None)])
