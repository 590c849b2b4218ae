"""Stored bytes decoded to pixels, compiled and without the GIL.

Imported by ``images.load_ffcv`` alone: importing FFCV and numba takes seconds and has side effects.
"""

# numba's functions have no Python types
# mypy: allow-untyped-defs
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int, c_uint64, c_void_p

import numba
import numpy as np

from .library import libffcv

SHORT_READ, NOT_CLEAN = 1, 2

_RGB = 0  # TJPF_RGB
_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT, as in Pillow and unlike in libffcv's own function

# libffcv is linked to libjpeg-turbo
_decompress = libffcv.lib.tjDecompress2
_decompress.argtypes = [c_void_p, c_void_p, c_uint64, c_void_p, c_int, c_int, c_int, c_int, c_int]
libffcv.lib.tjInitDecompress.restype = c_void_p
libffcv.lib.tjDestroy.argtypes = [c_void_p]

_compiled = numba.njit(nogil=True, error_model="numpy")
_read = _compiled(libffcv.read)

# of the weights of a resize, as in Pillow; half a step, to round to the nearest
_BITS = 22
_HALF = 1 << (_BITS - 1)


@contextmanager
def jpeg_handle() -> Iterator[int]:
    """Open a decoder of libjpeg-turbo for one thread.

    libffcv's own function opens one per thread and never closes it.
    """
    handle = libffcv.lib.tjInitDecompress()
    if not handle:
        raise MemoryError("libjpeg-turbo cannot be initialised")
    try:
        yield handle
    finally:
        libffcv.lib.tjDestroy(handle)


@_compiled
def decode(rows, offsets, sizes, heights, widths, encoded, file, handle, workspace, out):
    """Read and decode images; those of another size are resized and cropped to the centre.

    Args:
        rows: int64 ``(n,)``.
        offsets, sizes, heights, widths, encoded: the index, see ``images._Index``.
        file: descriptor.
        handle: of ``jpeg_handle``.
        workspace: of ``allocate_workspace``.
        out: uint8 ``(n, side, side, 3)``, contiguous.

    Returns:
        The number of images done, and 0, ``SHORT_READ`` or ``NOT_CLEAN`` for the next one. After
        the latter it may be complete or not written at all: libjpeg-turbo does not report which.
    """
    stored, pixels, squeezed = workspace
    side = out.shape[1]
    for index in range(len(rows)):
        row = rows[index]
        height, width = np.int64(heights[row]), np.int64(widths[row])
        fits = height == side and width == side
        # without a resize pixels are decoded straight into the output
        target = out[index].reshape(-1) if fits else pixels[: 3 * height * width]
        image = stored[: sizes[row]] if encoded[row] else target
        if _read(file, image, offsets[row]) != image.size:
            return index, SHORT_READ
        if encoded[row] and not _decode_jpeg(handle, image, height, width, target):
            return index, NOT_CLEAN
        if not fits:
            resize_crop(target.reshape(height, width, 3), squeezed, out[index])
    return len(rows), 0


@_compiled
def _decode_jpeg(handle, stored, height, width, pixels):
    status = _decompress(
        *(handle, stored.ctypes.data, stored.size),
        *(pixels.ctypes.data, width, 0, height, _RGB, _ACCURATE_DCT),
    )
    return status == 0


def allocate_workspace(stored: int, decoded: int, height: int, side: int) -> tuple[np.ndarray, ...]:
    """Buffers of one thread: for the largest image as stored and decoded, and the highest one."""
    return (
        *(np.empty(stored, np.uint8), np.empty(decoded, np.uint8)),
        np.empty((height, side, 3), np.uint8),
    )


@_compiled
def resize_crop(image, squeezed, out):
    """Resize the short side to that of ``out``, antialiased bilinear, and crop the centre.

    The same bytes as Pillow: first along the rows, rounded to bytes, then along the columns, with
    weights of 22 bits. Unlike Pillow only the crop is computed. For images over twice as high
    as wide, where Pillow 13 begins with the columns, pixels differ by 1 of 255 at most.

    Args:
        image: uint8 ``(height, width, 3)``.
        squeezed: uint8 ``(height or more, side, 3)``, overwritten.
        out: uint8 ``(side, side, 3)``.
    """
    (height, width, _), side = image.shape, len(out)
    short = min(height, width)
    above, below, down = _compute_weights(height, side * height // short, side)
    begin, end, across = _compute_weights(width, side * width // short, side)
    for row in range(above[0], below[-1]):
        _squeeze(image[row].reshape(-1), begin, end, across, squeezed[row].reshape(-1))
    flat, total = squeezed.reshape(len(squeezed), -1), np.empty(3 * side, np.int32)
    for row in range(side):
        total[:] = _HALF
        for index in range(above[row], below[row]):
            weight, source = down[row, index - above[row]], flat[index]
            for column in range(len(total)):
                total[column] += np.int32(weight * np.int32(source[column]))
        target = out[row].reshape(-1)
        for column in range(len(total)):
            target[column] = total[column] >> _BITS


@_compiled
def _squeeze(line, begin, end, weights, out):
    # sums of 32 bits, which numba would make 64
    for column in range(len(begin)):
        red = green = blue = np.int32(_HALF)
        for index in range(begin[column], end[column]):
            weight = weights[column, index - begin[column]]
            red += np.int32(weight * np.int32(line[3 * index]))
            green += np.int32(weight * np.int32(line[3 * index + 1]))
            blue += np.int32(weight * np.int32(line[3 * index + 2]))
        out[3 * column] = red >> _BITS
        out[3 * column + 1] = green >> _BITS
        out[3 * column + 2] = blue >> _BITS


@_compiled
def _compute_weights(size, resized, side):
    """Weights of the ``side`` middle pixels of a line resized from ``size`` to ``resized``.

    Returns:
        The begin and end of each in the line, int64 ``(side,)``, and its int32 weights.
    """
    scale = size / resized
    support = max(scale, 1.0)
    first = np.int64(np.rint((resized - side) / 2))
    begin, end = np.empty(side, np.int64), np.empty(side, np.int64)
    weights = np.zeros((side, 2 * np.int64(np.ceil(support)) + 1), np.int32)
    values = np.empty(weights.shape[1])
    for index in range(side):
        centre = (first + index + 0.5) * scale
        begin[index] = max(np.int64(centre - support + 0.5), 0)
        end[index] = min(np.int64(centre + support + 0.5), size)
        count, total = end[index] - begin[index], 0.0
        for tap in range(count):
            distance = abs((tap + begin[index] - centre + 0.5) * (1 / support))
            values[tap] = max(1 - distance, 0.0)
            total += values[tap]
        for tap in range(count):
            # Pillow divides and rounds in this order
            weights[index, tap] = np.int32(0.5 + values[tap] / total * (1 << _BITS))
    return begin, end, weights


def compile_now() -> None:
    """Compile ``decode`` for the types it is called with, in the calling thread."""
    index = (np.empty(0, np.int64), np.empty(0, np.uint32), *(np.empty(0, np.uint16),) * 2)
    decode(
        *(np.empty(0, np.int64), *index, np.empty(0, np.bool_), 0, 0),
        *(allocate_workspace(1, 1, 1, 1), np.empty((0, 1, 1, 3), np.uint8)),
    )
