"""How many classes are stepped together?

On a CPU those whose activations stay in its caches. On a GPU those that saturate it, if they fit
into its memory.
"""

import itertools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..common.errors import UserError
from ..config import ResolvedConfig

log = logging.getLogger("m3d_fast")

CPU_SYNTHETIC_IMAGES = 64  # decoded images per chunk on a CPU: their activations stay in its caches
FILL = 0.85  # of the free memory; the rest is for fragmentation and other processes
# elements of a feature map beyond which kernels index with 64 bits, which is slower; a forward of
# so many saturates any GPU: 668 images of 224 px (ResNetAP-10), 16,384 of 32 px (ConvNet-3)
MAX_MAP_ELEMENTS = 2**31


def split_evenly(classes: int, limit: int, group: int = 1) -> list[slice]:
    """Rows of the fewest chunks of at most ``limit`` classes, but at least one group each.

    Sizes differ by at most one group; ``classes`` is a multiple of ``group``.
    """
    groups, most = classes // group, max(1, limit // group)
    pieces = -(-groups // most)
    bounds = [groups * piece // pieces * group for piece in range(pieces + 1)]
    return list(itertools.starmap(slice, itertools.pairwise(bounds)))


def choose_chunk_size(config: ResolvedConfig, classes: int, *, on_cpu: bool) -> int | None:
    """Classes stepped together where that needs no measurement; None where a GPU's memory decides.

    Args:
        config: resolved settings.
        classes: those to step.
        on_cpu: whether they are stepped on a CPU.
    """
    if config.class_chunk is not None:
        return config.class_chunk
    if config.scope == "joint":
        return classes
    return max(1, CPU_SYNTHETIC_IMAGES // config.synthetic_per_step) if on_cpu else None


def count_saturating_classes(network: nn.Module, image_shape: Sequence[int], images: int) -> int:
    """Classes of ``images`` images each whose largest feature map has at most 2^31 elements.

    Args:
        network: on any device; all its convolutions are run at stride 1, or shrink the map.
        image_shape: ``(C, H, W)``.
        images: of a class, in one forward.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    map_elements = next(convolutions).out_channels * image_shape[1] * image_shape[2]
    return max(1, MAX_MAP_ELEMENTS // (map_elements * images))


def find_largest_chunk(
    measure_peak: Callable[[int], int], classes: int, free: int, group: int = 1
) -> int:
    """The most classes whose step fits into ``free`` bytes, measured on one group and verified.

    Args:
        measure_peak: steps this many classes and returns the peak of the bytes in use; may raise
            ``torch.OutOfMemoryError``.
        classes: number of classes.
        free: bytes.
        group: classes that are stepped together in any case.

    Raises:
        UserError: if one group alone does not fit.
    """
    try:
        one = measure_peak(group)
    except torch.OutOfMemoryError as error:
        unit, lower = (
            ("one class", "") if group == 1 else (f"a group of {group} classes", "--group, ")
        )
        raise UserError(
            f"{unit} does not fit into the {free / 2**30:.1f} GB of free GPU memory; "
            f"use a lower {lower}--real-batch, --ipc or --size"
        ) from error
    chunk = max(group, min(classes, int(free * FILL) // max(1, one) * group))
    while chunk > group:
        largest = split_evenly(classes, chunk, group)[-1]
        chunk = largest.stop - largest.start
        try:
            if measure_peak(chunk) <= free:
                break
            reason = "need more than the free memory"
        except torch.OutOfMemoryError:
            reason = "do not fit"
        smaller = max(group, chunk // group * 3 // 4 * group)
        log.info("%d classes at a time %s; trying %d", chunk, reason, smaller)
        chunk = smaller
    return chunk
