"""In which form does an image lie in a packed file?"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...common.errors import DataError
from ..image_files.decoding import as_rgb, decode_image

JPEG_MODE, RAW_MODE = 0, 1  # as FFCV numbers them

# of whole images that FFCV's decoder does not read as they are
_ORIGINAL_QUALITY = 95


@dataclass(frozen=True)
class Stored:
    """One image as stored.

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


def quality(store: str) -> int | None:
    """Q of "jpeg:Q", None for "raw" and "original".

    Raises:
        DataError: for any other word.
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
    """Decode the whole image, and give it the form in which it is stored.

    Args:
        path: the image file.
        size: side of the crop in pixels; not used for "original".
        store: "raw", "jpeg:Q" or "original".

    Raises:
        DataError: naming the file that cannot be decoded.
    """
    if store == "original":
        return _original(path)
    pixels = decode_image(path, size=size).permute(1, 2, 0).contiguous().numpy()
    level = quality(store)
    if level is None:
        return Stored(RAW_MODE, size, size, pixels.reshape(-1))
    return Stored(JPEG_MODE, size, size, _jpeg(pixels, level))


def _original(path: Path) -> Stored:
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as file:
            file.load()
            if file.format == "JPEG" and file.mode in ("RGB", "L"):
                data = np.frombuffer(content, dtype=np.uint8)
                return Stored(JPEG_MODE, file.height, file.width, data)
            pixels = np.asarray(as_rgb(file))
        height, width, _ = pixels.shape
        return Stored(JPEG_MODE, height, width, _jpeg(pixels, _ORIGINAL_QUALITY))
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as cause:
        raise DataError(
            f"the image {path} cannot be decoded ({cause}): replace or remove it"
        ) from cause


def _jpeg(pixels: npt.NDArray[np.uint8], level: int) -> npt.NDArray[np.uint8]:
    from ffcv.fields.rgb_image import encode_jpeg

    return encode_jpeg(pixels, level)
