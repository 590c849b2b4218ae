"""How many classes are stepped together?"""

import itertools
import logging
from collections.abc import Callable

import torch

from ..common.errors import UserError

log = logging.getLogger("m3d_fast")

CPU_SYNTHETIC_IMAGES = 64  # decoded images per chunk on a CPU: their activations stay in its caches
FILL = 0.85  # of the free memory; the rest is for fragmentation and other processes


def split_evenly(classes: int, limit: int) -> list[slice]:
    """Rows of the fewest chunks of at most ``limit`` classes; sizes differ by at most one."""
    pieces = -(-classes // limit)
    bounds = [classes * piece // pieces for piece in range(pieces + 1)]
    return list(itertools.starmap(slice, itertools.pairwise(bounds)))


def find_largest_chunk(measure_peak: Callable[[int], int], classes: int, free: int) -> int:
    """The most classes whose step fits into ``free`` bytes, measured on one class and verified.

    Args:
        measure_peak: steps this many classes and returns the peak of the bytes in use; may raise
            ``torch.OutOfMemoryError``.
        classes: number of classes.
        free: bytes.

    Raises:
        UserError: if one class alone does not fit.
    """
    try:
        one = measure_peak(1)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"one class does not fit into the {free / 2**30:.1f} GB of free GPU memory; "
            "use a lower --real-batch, --ipc or --size"
        ) from error
    chunk = max(1, min(classes, int(free * FILL) // max(1, one)))
    while chunk > 1:
        largest = split_evenly(classes, chunk)[-1]
        chunk = largest.stop - largest.start
        try:
            if measure_peak(chunk) <= free:
                break
            reason = "need more than the free memory"
        except torch.OutOfMemoryError:
            reason = "do not fit"
        smaller = max(1, chunk * 3 // 4)
        log.info("%d classes at a time %s; trying %d", chunk, reason, smaller)
        chunk = smaller
    return chunk
