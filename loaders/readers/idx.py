"""IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...common.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file; compression is recognised by content, not by name.
        dimensions: number of dimensions of the array (images 3, labels 1).

    Returns:
        A writable uint8 array.

    Raises:
        DataError: if the file cannot be read, is damaged, truncated, or of another format.
    """
    content = _read_content(path)
    header = 4 + 4 * dimensions
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if content[:4] != expected:
        raise DataError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes: it should begin with "
            f"{expected.hex()}, it begins with {content[:4].hex() or 'nothing'}; fetch it again"
        )
    if len(content) < header:
        raise DataError(f"{path} ends inside its {header}-byte header; fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path} should hold {math.prod(shape)} bytes of data {shape}, it holds "
            f"{len(content) - header}; fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_content(path: Path) -> bytearray:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as cause:
        raise DataError(f"{path} cannot be read ({cause}); fetch it again") from cause
    # a bytearray, so that arrays over it are writable, as torch requires
    return bytearray(content)
