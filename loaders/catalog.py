"""How is a data set opened by its name?"""

import difflib
import logging
import os
from pathlib import Path

import torch

from .digits import read_digits
from .errors import DataError
from .labelled import LabelledImages
from .memory import MemoryImages
from .mnist import read_mnist
from .protocol import RealImages
from .registry import DATASETS, NOT_YET, DatasetInfo
from .resize import resized

log = logging.getLogger("m3d_fast")

_SMALLEST_SIDE = 8


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    size: int | None = None,
    device: str | torch.device = "cpu",
    *,
    seed: int = 0,
) -> RealImages:
    """Open one split of a data set, resident on the device.

    Args:
        name: a key of ``DATASETS``.
        root: the data set's folder; None where it is bundled, packaged or downloaded.
        split: "train" or "test".
        size: side of the square images in pixels, at least 8; None for the set's own.
        device: where the images are served.
        seed: of the class-wise sampling.

    Raises:
        DataError: if the name, split or size is wrong, or the data are missing, damaged or too
            large.
    """
    info = _info(name)
    if split not in ("train", "test"):
        raise DataError(f"the split is 'train' or 'test', got '{split}'")
    folder = None if root is None else Path(root).expanduser()
    try:
        data = _read(name, info, folder, split, _side(name, info, size))
    except ModuleNotFoundError as missing:
        raise DataError(
            f"{name} needs the Python package {missing.name}: pip install 'm3d_fast[condense]'"
        ) from missing
    images = MemoryImages(data, mean=info.mean, std=info.std, device=device, seed=seed)
    log.info(
        "%s: %d %s images from %s, resident on %s",
        name,
        sum(images.class_sizes),
        split,
        data.source,
        images.device,
    )
    return images


def _info(name: str) -> DatasetInfo:
    if name in NOT_YET:
        raise DataError(f"{name} cannot be opened yet in this version: take another data set")
    if name not in DATASETS:
        near = difflib.get_close_matches(name.lower(), DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(DATASETS)}"
        raise DataError(f"unknown data set '{name}': {hint}")
    return DATASETS[name]


def _side(name: str, info: DatasetInfo, size: int | None) -> int:
    side = info.default_size if size is None else size
    if side is None:
        raise DataError(f"{name} has no size of its own: pass --size PIXELS")
    if side < _SMALLEST_SIDE:
        raise DataError(f"the size must be at least {_SMALLEST_SIDE} pixels, got {side}")
    return side


def _read(name: str, info: DatasetInfo, root: Path | None, split: str, side: int) -> LabelledImages:
    match info.kind:
        case "idx":
            data = read_mnist(name, root, split)
        case "digits":
            data = read_digits(split)
        case _:
            raise DataError(f"{name} cannot be opened yet")
    return LabelledImages(resized(data.images, side), data.labels, data.class_names, data.source)
