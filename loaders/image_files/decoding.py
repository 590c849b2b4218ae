"""Image files decoded to square images."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...common.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


def decode_image(path: Path, *, size: int) -> Tensor:
    """Decode an image file: short side to ``size`` (bilinear, antialiased), centre crop, RGB.

    Colour spaces other than RGB are converted, transparency is dropped, EXIF rotation is not
    applied (as in the published pre-processing).

    Args:
        path: the image file.
        size: side of the result in pixels.

    Returns:
        uint8 ``(3, size, size)``.

    Raises:
        DataError: naming the file if it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = _resize_and_crop(convert_to_rgb(file), size)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as cause:
        raise DataError(
            f"the image {path} cannot be decoded ({cause}): replace or remove it"
        ) from cause


def _resize_and_crop(image: "Image", size: int) -> "Image":
    """What torchvision's ``Resize`` and ``CenterCrop`` do, without its 1.5 s of imports."""
    from PIL import Image

    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def convert_to_rgb(image: "Image") -> "Image":
    """Convert to RGB: transparency dropped, 16 bits reduced to 8."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip everything above 255 to white
        from PIL import Image

        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns when a palette's transparency is dropped in one step
        image = image.convert("RGBA")
    return image.convert("RGB")
