"""How do image files become square images in memory?"""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("m3d_fast")

# bounds what is held on the host beside the result, and the wait after a damaged file
_CHUNK = 256


def decode(paths: Sequence[Path], size: int, device: str | torch.device) -> Tensor:
    """Decode image files: short side to ``size`` (bilinear, antialiased), centre crop, RGB.

    Colour spaces other than RGB are converted, transparency is dropped, EXIF rotation is not
    applied (as in the published pre-processing).

    Args:
        paths: image files, at least one.
        size: side of the result in pixels.
        device: where the result is built, chunk by chunk.

    Returns:
        uint8 ``(len(paths), 3, size, size)``.

    Raises:
        DataError: naming the file that cannot be decoded.
    """
    started = time.perf_counter()
    log.info("decoding %d images at %d px", len(paths), size)
    result = torch.empty((len(paths), 3, size, size), dtype=torch.uint8, device=device)
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            images = list(pool.map(partial(decode_image, size=size), chunk))
            result[start : start + len(chunk)].copy_(torch.stack(images))
    seconds = time.perf_counter() - started
    log.info("decoded %d images at %d px in %.1f s", len(paths), size, seconds)
    return result


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode_image(path: Path, *, size: int) -> Tensor:
    """One image of ``decode``, uint8 ``(3, size, size)``."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(path) as file:
            image = functional.resize(as_rgb(file), [size], antialias=True)
            return functional.pil_to_tensor(functional.center_crop(image, [size, size]))
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as cause:
        raise DataError(
            f"the image {path} cannot be decoded ({cause}): replace or remove it"
        ) from cause


def as_rgb(image: "Image") -> "Image":
    """Convert to RGB: transparency dropped, 16 bits cut to 8."""
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip everything above 255 to white
        from PIL import Image

        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns when a palette's transparency is dropped in one step
        image = image.convert("RGBA")
    return image.convert("RGB")
