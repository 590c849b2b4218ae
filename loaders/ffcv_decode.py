"""How do stored bytes become pixels, compiled and without the GIL?

Imported by ``ffcv.load_ffcv`` alone: importing FFCV and numba takes seconds and has side effects.
"""

# numba's functions have no Python types
# mypy: allow-untyped-defs
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int, c_uint64, c_void_p

import numba
import numpy as np
from ffcv import libffcv

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
_resize_crop = _compiled(libffcv.resize_crop)


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
def decode(
    rows, offsets, sizes, heights, widths, encoded, file, handle, stored, pixels, resized, out
):
    """Read and decode images into planes, centre-cropped and resized where they are not square.

    Args:
        rows: int64 ``(n,)``.
        offsets, sizes, heights, widths, encoded: the index, see ``ffcv.FfcvImages``.
        file: descriptor.
        handle: of ``jpeg_handle``.
        stored, pixels: uint8, flat, room for the largest image as stored and decoded.
        resized: uint8 ``(side, side, 3)``.
        out: uint8 ``(n, 3, side, side)``, contiguous.

    Returns:
        How many images were done, and 0, ``SHORT_READ`` or ``NOT_CLEAN`` for the next one. After
        the latter it may be whole or not written at all: libjpeg-turbo does not tell which.
    """
    for place in range(len(rows)):
        row = rows[place]
        height, width = np.int64(heights[row]), np.int64(widths[row])
        image = stored[: sizes[row]]
        if _read(file, image, offsets[row]) != image.size:
            return place, SHORT_READ
        if encoded[row]:
            if not _decode_jpeg(handle, image, height, width, pixels):
                return place, NOT_CLEAN
            image = pixels[: 3 * height * width]
        put(image, height, width, resized, out[place])
    return len(rows), 0


@_compiled
def put(image, height, width, resized, out):
    """Split one image, uint8 ``(height * width * 3,)``, into planes; see ``decode``."""
    side = out.shape[1]
    if height != side or width != side:
        crop = min(height, width)
        top, left = (height - crop) // 2, (width - crop) // 2
        whole = image.reshape(height, width, 3)
        _resize_crop(whole, top, top + crop, left, left + crop, resized)
        image = resized.reshape(-1)
    planes = out.reshape(3, side * side)
    red, green, blue = planes[0], planes[1], planes[2]
    for place in range(len(red)):
        red[place] = image[3 * place]
        green[place] = image[3 * place + 1]
        blue[place] = image[3 * place + 2]


@_compiled
def _decode_jpeg(handle, stored, height, width, pixels):
    status = _decompress(
        *(handle, stored.ctypes.data, stored.size),
        *(pixels.ctypes.data, width, 0, height, _RGB, _ACCURATE_DCT),
    )
    return status == 0


def compile_now() -> None:
    """Compile ``decode`` for the types it is called with, in the thread that asks."""
    index = (np.empty(0, np.int64), np.empty(0, np.uint32), *(np.empty(0, np.uint16),) * 2)
    small, image = np.empty(1, np.uint8), np.empty((1, 1, 3), np.uint8)
    decode(
        *(np.empty(0, np.int64), *index, np.empty(0, np.bool_), 0, 0),
        *(small, small, image, np.empty((0, 3, 1, 1), np.uint8)),
    )
