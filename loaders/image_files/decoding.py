"""Image files decoded to square images."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
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
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as file:
            image = functional.resize(convert_to_rgb(file), [size], antialias=True)
            return functional.pil_to_tensor(functional.center_crop(image, [size, size]))
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as cause:
        raise DataError(
            f"the image {path} cannot be decoded ({cause}): replace or remove it"
        ) from cause


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
