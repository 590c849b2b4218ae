"""How many classes are stepped together?"""

import itertools
import logging
from collections.abc import Callable

import torch

from ..common.errors import UserError

log = logging.getLogger("m3d_fast")

CPU_SYNTHETIC_IMAGES = 64  # decoded images per chunk on a CPU: their activations stay in its caches
FILL = 0.85  # of the free memory, the rest is for fragments and what others take


def equal_chunks(classes: int, limit: int) -> list[slice]:
    """Rows of as few and as equal chunks of at most ``limit`` classes as can be."""
    pieces = -(-classes // limit)
    bounds = [classes * piece // pieces for piece in range(pieces + 1)]
    return list(itertools.starmap(slice, itertools.pairwise(bounds)))


def cached_classes(decoded: int) -> int:
    """Classes of so many decoded images whose activations stay in a CPU's caches."""
    return max(1, CPU_SYNTHETIC_IMAGES // decoded)


def largest_fitting(peak_of: Callable[[int], int], classes: int, free: int) -> int:
    """The most classes whose step fits into ``free`` bytes, measured on one class and verified.

    Args:
        peak_of: steps so many classes and returns the bytes that took at their height; may raise
            ``torch.OutOfMemoryError``.
        classes: how many there are.
        free: bytes.

    Raises:
        UserError: if not even one class fits.
    """
    try:
        one = peak_of(1)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"one class does not fit into the {free / 2**30:.1f} GB of free GPU memory; "
            "use a lower --real-batch, --ipc or --size"
        ) from error
    chunk = max(1, min(classes, int(free * FILL) // max(1, one)))
    while chunk > 1:
        chunk = equal_chunks(classes, chunk)[-1].stop - equal_chunks(classes, chunk)[-1].start
        try:
            if peak_of(chunk) <= free:
                break
            reason = "takes more than is free"
        except torch.OutOfMemoryError:
            reason = "does not fit"
        smaller = max(1, chunk * 3 // 4)
        log.info("%d classes at a time %s; trying %d", chunk, reason, smaller)
        chunk = smaller
    return chunk
