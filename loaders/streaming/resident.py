"""Which classes are kept in memory, on the GPU or in RAM, and how do they get there?"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ...common.errors import DataError
from ...common.hardware import free_bytes, usable_cores
from ..protocol import BackEnd, IntArray
from ..resources import spare_bytes
from .ring import Fill, Ring

log = logging.getLogger("m3d_fast")

Cache = Literal["auto", "device", "host", "none"]

_PIECE_BYTES = 32e6  # read and copied at a time while filling
_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Resident:
    """Images of some classes, whole.

    Attributes:
        images: uint8 ``(n, C, H, W)``, on the device or in RAM, in the layout of the back end.
        places: int32, for every row of the back end its place in ``images``, or -1.
        holds: bool, for every class whether it is here.
    """

    images: Tensor
    places: np.ndarray
    holds: np.ndarray

    def read(self, plan: Iterator[IntArray]) -> AbstractContextManager[Iterator[Tensor]]:
        """Gather the rows of a plan from RAM into page-locked buffers, ahead, in threads."""
        layout = torch.contiguous_format
        if not self.images.is_contiguous():
            layout = torch.channels_last
        stored = _rows(self.images.numpy())

        @contextmanager
        def worker() -> Iterator[Fill]:
            def fill(rows: IntArray, out: np.ndarray) -> None:
                # in this mode numpy writes straight into `out`, without the GIL
                np.take(stored, self.places[rows], 0, _rows(out), mode="clip")

            yield fill

        return Ring(
            plan,
            worker,
            self.images.shape[1:],
            source="images in RAM",
            workers=usable_cores(),
            pinned=torch.cuda.is_initialized(),
            layout=layout,
        )


def _rows(images: np.ndarray) -> np.ndarray:
    """A contiguous view of images in either layout."""
    return images if images.flags.c_contiguous else images.transpose(0, 2, 3, 1)


def keep_resident(
    back_end: BackEnd, device: torch.device, cache: Cache, classes: Sequence[int] | None
) -> Resident | None:
    """Choose what is kept in memory, say so in one line, and read it once from the back end.

    ``auto`` keeps every class on the device where that leaves half of its memory free, else in
    RAM on the same condition, else as many as fit into the roomier of the two, in their order.

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
    if cache not in get_args(Cache):
        raise DataError(f"the cache is {', '.join(get_args(Cache))}, got '{cache}'")
    total = len(back_end.class_sizes)
    wanted = list(range(total)) if classes is None else list(dict.fromkeys(map(int, classes)))
    for index in wanted:
        if not 0 <= index < total:
            raise DataError(f"class {index} does not exist: classes are 0 to {total - 1}")
    host = torch.device("cpu")
    image_bytes = math.prod(back_end.image_shape)
    sizes = [back_end.class_sizes[index] * image_bytes for index in wanted]
    place, count = host, 0
    if cache in ("device", "host"):
        place, count = device if cache == "device" else host, len(wanted)
        _refuse_without_room(cache, sum(sizes), place, back_end)
    elif cache == "auto":
        place, count = _best([device, host] if device.type == "cuda" else [host], sizes)
    kept = wanted[:count]
    log.info(
        "%s: %s", back_end.source, _told(kept, len(wanted), sum(sizes[:count]), place, back_end)
    )
    return _filled(back_end, kept, place) if kept else None


def _best(places: Sequence[torch.device], sizes: Sequence[int]) -> tuple[torch.device, int]:
    """The first of the places with the most classes, and how many."""
    ends = np.cumsum(sizes)
    counts = [int(np.searchsorted(ends, spare_bytes(place), side="right")) for place in places]
    best = max(counts)
    return places[counts.index(best)], best


def _refuse_without_room(cache: str, needed: int, place: torch.device, back_end: BackEnd) -> None:
    free = free_bytes(place)
    if needed > free:
        raise DataError(
            f"the cache '{cache}' needs {needed / 1e9:.2f} GB on {place} for the images of "
            f"{back_end.source} at {back_end.image_shape[-1]} px, {free / 1e9:.2f} GB are free: "
            "take 'auto', which keeps what fits and streams the rest, or a smaller --size"
        )


def _told(
    kept: Sequence[int], wanted: int, size: int, place: torch.device, back_end: BackEnd
) -> str:
    if not kept:
        return f"{wanted} classes are streamed by {back_end.name}, none is kept in memory"
    images = sum(back_end.class_sizes[index] for index in kept)
    rest = "" if len(kept) == wanted else f", {wanted - len(kept)} are streamed by {back_end.name}"
    where = "RAM" if place.type == "cpu" else str(place)
    return (
        f"{len(kept)} of {wanted} classes ({images} images, {size / 1e9:.2f} GB) are kept in "
        f"{where}, read once by {back_end.name}{rest}"
    )


def _filled(back_end: BackEnd, kept: Sequence[int], place: torch.device) -> Resident:
    sizes = np.asarray(back_end.class_sizes)
    first = np.concatenate(([0], np.cumsum(sizes)))
    rows = np.concatenate([np.arange(first[c], first[c + 1]) for c in kept])
    places = np.full(first[-1], -1, np.int32)
    places[rows] = np.arange(len(rows), dtype=np.int32)
    shape = (len(rows), *back_end.image_shape)
    images = torch.empty(shape, dtype=torch.uint8, device=place, memory_format=back_end.layout)
    length = max(1, int(_PIECE_BYTES // math.prod(back_end.image_shape)))
    pieces = (rows[start : start + length] for start in range(0, len(rows), length))
    started = told = time.monotonic()
    done = 0
    with back_end.read(pieces) as tensors:
        for tensor in tensors:
            images[done : done + len(tensor)].copy_(tensor)
            done += len(tensor)
            now = time.monotonic()
            if now - told >= _LINE_SECONDS:
                told = now
                left = (now - started) / done * (len(rows) - done)
                log.info("kept %d of %d images, %.0f s left", done, len(rows), left)
    holds = np.zeros(len(sizes), np.bool_)
    holds[kept] = True
    return Resident(images, places, holds)
