"""Classes that are kept in memory, on the GPU or in RAM."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...common.checks import check_name
from ...common.errors import DataError
from ...common.hardware import usable_cores
from ...common.processes import rank_of_process
from ...common.progress import Progress
from ..protocol import BackEnd, IntArray
from ..resources import check_free_memory, spare_bytes
from ..sampling import check_class
from .prefetcher import Fill, Prefetcher

log = logging.getLogger("m3d_fast")

Cache = Literal["auto", "device", "host", "none"]

_PIECE_BYTES = 32e6  # read and copied at a time


@dataclass(frozen=True)
class Resident:
    """All images of some classes.

    Attributes:
        images: uint8 ``(n, C, H, W)``, on the device or in RAM, in the layout of the back end.
        index: int32, for every row of the back end its index in ``images``, or -1.
        classes: bool, for every class whether it is kept.
    """

    images: Tensor
    index: np.ndarray
    classes: np.ndarray

    def read(self, row_batches: Iterator[IntArray]) -> AbstractContextManager[Iterator[Tensor]]:
        """Gather rows from RAM into page-locked buffers, ahead of the reader, in threads."""
        layout = torch.contiguous_format
        if not self.images.is_contiguous():
            layout = torch.channels_last
        stored = _view_contiguous(self.images.numpy())

        @contextmanager
        def worker() -> Iterator[Fill]:
            def fill(rows: IntArray, out: np.ndarray) -> None:
                # in this mode numpy writes straight into `out`, without the GIL
                np.take(stored, self.index[rows], 0, _view_contiguous(out), mode="clip")

            yield fill

        return Prefetcher(
            row_batches,
            worker,
            self.images.shape[1:],
            source="images in RAM",
            workers=usable_cores(),
            pinned=torch.cuda.is_initialized(),
            layout=layout,
        )


def _view_contiguous(images: np.ndarray) -> np.ndarray:
    """A contiguous view of images in either layout."""
    return images if images.flags.c_contiguous else images.transpose(0, 2, 3, 1)


def keep_resident(
    back_end: BackEnd, device: torch.device, cache: Cache, classes: Sequence[int] | None
) -> Resident | None:
    """Choose the classes that are kept in memory, log the choice, and read them.

    ``auto`` keeps every class on the device where that leaves half of its memory free, else in
    RAM on the same condition, else as many as fit into the larger of the two, in their order.

    Args:
        back_end: what is read.
        device: where batches are needed.
        cache: ``device`` and ``host`` keep all classes there or fail, ``none`` keeps nothing.
        classes: those that will be drawn, the only ones worth keeping; None for all.

    Returns:
        None when nothing is kept.

    Raises:
        DataError: if ``cache`` or a class does not exist, or there is too little memory.
    """
    check_name("cache", cache, get_args(Cache), DataError)
    wanted = _select_classes(classes, len(back_end.class_sizes))
    host = torch.device("cpu")
    image_bytes = math.prod(back_end.image_shape)
    sizes = [back_end.class_sizes[class_index] * image_bytes for class_index in wanted]
    memory, count = host, 0
    if cache in ("device", "host"):
        memory, count = device if cache == "device" else host, len(wanted)
        what = f"the cache '{cache}' of {back_end.source} at {back_end.image_shape[-1]} px"
        advice = "take 'auto', which keeps what fits and streams the rest, or a smaller --size"
        check_free_memory(what, sum(sizes), memory, advice)
    elif cache == "auto":
        memory, count = _choose_memory([device, host] if device.type == "cuda" else [host], sizes)
    kept = wanted[:count]
    choice = _describe_choice(kept, len(wanted), sum(sizes[:count]), memory, back_end)
    log.info("%s: %s", back_end.source, choice)
    return _load(back_end, kept, memory) if kept else None


def _select_classes(classes: Sequence[int] | None, total: int) -> list[int]:
    """Each of ``classes`` once, or all; DataError if one does not exist."""
    selected = list(range(total)) if classes is None else list(dict.fromkeys(map(int, classes)))
    for class_index in selected:
        check_class(class_index, total)
    return selected


def _choose_memory(
    devices: Sequence[torch.device], sizes: Sequence[int]
) -> tuple[torch.device, int]:
    """The first of the devices on which most classes fit, and how many do."""
    ends = np.cumsum(sizes)
    counts = [int(np.searchsorted(ends, spare_bytes(device), side="right")) for device in devices]
    most = max(counts)
    return devices[counts.index(most)], most


def _describe_choice(
    kept: Sequence[int], wanted: int, size: int, memory: torch.device, back_end: BackEnd
) -> str:
    if not kept:
        return f"{wanted} classes are streamed by {back_end.name}, none is kept in memory"
    images = sum(back_end.class_sizes[class_index] for class_index in kept)
    rest = "" if len(kept) == wanted else f", {wanted - len(kept)} are streamed by {back_end.name}"
    where = "RAM" if memory.type == "cpu" else str(memory)
    return (
        f"{len(kept)} of {wanted} classes ({images} images, {size / 1e9:.2f} GB) are kept in "
        f"{where}, read once by {back_end.name}{rest}"
    )


def _load(back_end: BackEnd, kept: Sequence[int], memory: torch.device) -> Resident:
    sizes = np.asarray(back_end.class_sizes)
    first_rows = np.concatenate(([0], np.cumsum(sizes)))
    rows = np.concatenate([np.arange(first_rows[c], first_rows[c + 1]) for c in kept])
    index = np.full(first_rows[-1], -1, np.int32)
    index[rows] = np.arange(len(rows), dtype=np.int32)
    shape = (len(rows), *back_end.image_shape)
    images = torch.empty(shape, dtype=torch.uint8, device=memory, memory_format=back_end.layout)
    length = max(1, int(_PIECE_BYTES // math.prod(back_end.image_shape)))
    pieces = (rows[start : start + length] for start in range(0, len(rows), length))
    done, bar = 0, rank_of_process() == 0
    progress = Progress(f"reading {back_end.source}", len(rows), bar=bar, last_line=False)
    with progress, back_end.read(pieces) as tensors:
        for tensor in tensors:
            images[done : done + len(tensor)].copy_(tensor)
            done += len(tensor)
            progress.update(done)
    classes = np.zeros(len(sizes), np.bool_)
    classes[kept] = True
    return Resident(images, index, classes)
