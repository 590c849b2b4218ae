"""The form in which an image is stored in a packed file."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...common.errors import DataError
from ..image_files.decoding import convert_to_rgb, decode_image

JPEG_MODE, RAW_MODE = 0, 1  # as FFCV numbers them

# of images whose own bytes FFCV's decoder cannot read
_ORIGINAL_QUALITY = 95


@dataclass(frozen=True)
class Stored:
    """One image in the form in which it is stored.

    Attributes:
        mode: ``JPEG_MODE`` or ``RAW_MODE``.
        height: pixels.
        width: pixels.
        content: uint8 ``(bytes,)``: a JPEG file, or pixels in the order height, width, channel.
    """

    mode: int
    height: int
    width: int
    content: npt.NDArray[np.uint8]


def parse_quality(store: str) -> int | None:
    """Q of "jpeg:Q", None for "raw" and "original".

    Raises:
        DataError: for anything else.
    """
    if store in ("raw", "original"):
        return None
    found = re.fullmatch(r"jpeg:(\d{1,3})", store)
    if found is None or not 1 <= int(found[1]) <= 100:
        raise DataError(
            f"images are stored as raw, jpeg:QUALITY (1 to 100) or original, got '{store}'"
        )
    return int(found[1])


def encode(path: Path, *, size: int, store: str) -> Stored:
    """Decode a whole image and encode it in the form in which it is stored.

    Args:
        path: the image file.
        size: side of the crop in pixels; not used for "original".
        store: "raw", "jpeg:Q" or "original".

    Raises:
        DataError: naming the file that cannot be decoded.
    """
    if store == "original":
        return _keep_original(path)
    pixels = decode_image(path, size=size).permute(1, 2, 0).contiguous().numpy()
    quality = parse_quality(store)
    if quality is None:
        return Stored(RAW_MODE, size, size, pixels.reshape(-1))
    return Stored(JPEG_MODE, size, size, _encode_jpeg(pixels, quality))


def _keep_original(path: Path) -> Stored:
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as file:
            file.load()
            if file.format == "JPEG" and file.mode in ("RGB", "L"):
                data = np.frombuffer(content, dtype=np.uint8)
                return Stored(JPEG_MODE, file.height, file.width, data)
            pixels = np.asarray(convert_to_rgb(file))
        height, width, _ = pixels.shape
        return Stored(JPEG_MODE, height, width, _encode_jpeg(pixels, _ORIGINAL_QUALITY))
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as cause:
        raise DataError(
            f"the image {path} cannot be decoded ({cause}): replace or remove it"
        ) from cause


def _encode_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    from .library import encode_jpeg

    return encode_jpeg(pixels, quality)
