"""How is a data set opened by its name?"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch

from ..common.errors import DataError
from .backends import LOADERS, choose_back_end
from .memory import MemoryImages
from .protocol import RealImages
from .readers.digits import read_digits
from .readers.labelled import LabelledImages
from .readers.mnist import read_mnist
from .readers.resizing import resized
from .readers.torchvision_sets import read_cifar, read_svhn
from .registry import dataset_info
from .resources import refuse_without_room
from .streaming.resident import Cache
from .streaming.streamed import StreamedImages

log = logging.getLogger("m3d_fast")

CACHES: tuple[str, ...] = get_args(Cache)

_SMALLEST_SIDE = 8
_IMAGE_FILES = ("folder", "imagenet", "tinyimagenet")  # kinds


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    size: int | None = None,
    device: str | torch.device = "cpu",
    *,
    seed: int = 0,
    cache: str = "auto",
    loader: str = "auto",
    workers: int | None = None,
    classes: Sequence[int] | None = None,
) -> RealImages:
    """Open one split of a data set.

    Sets of image files are read through FFCV from a packed file, which is made first where there
    is none, or decoded by worker processes; see ``choose_back_end``. The other sets are small and
    live on the device.

    Args:
        name: a key of ``DATASETS``, or "custom:FILE" for the classes of ImageNet listed in FILE.
        root: the data set's folder, or a packed ``.beton`` file; None where it is bundled,
            packaged or downloaded.
        split: "train" or "test".
        size: side of the square images in pixels, at least 8; None for the set's own.
        device: where the images are served.
        seed: of the class-wise sampling.
        cache: where decoded images are kept: "device", "host", "none", or "auto" by free memory.
        loader: how image files are read: "ffcv", "folder" or "auto".
        workers: threads or processes that decode; None for one per core.
        classes: those that will be drawn from, for which alone room is taken; None for all.

    Raises:
        DataError: if a name, split or size is wrong, or the data are missing, damaged or too
            large.
    """
    info, side = dataset_info(name), image_side(name, size)
    _check_choice("split", split, ("train", "test"))
    _check_choice("cache", cache, CACHES)
    _check_choice("loader", loader, LOADERS)
    target, folder = _device(device), None if root is None else Path(root).expanduser()
    try:
        if info.kind in _IMAGE_FILES:
            back_end = choose_back_end(name, folder, split, side, loader=loader, workers=workers)
            return StreamedImages(
                back_end,
                mean=info.mean,
                std=info.std,
                device=target,
                seed=seed,
                cache=cast(Cache, cache),
                classes=classes,
            )
        if loader != "auto" or cache in ("host", "none"):
            raise DataError(f"{name} is small and lives on the device: leave out --loader, --cache")
        data = _read(name, folder, split, side, target)
    except ModuleNotFoundError as missing:
        raise DataError(
            f"{name} needs the Python package {missing.name}: pip install 'm3d_fast[condense]'"
        ) from missing
    except OSError as cause:
        raise DataError(f"{name} cannot be read: {cause}") from cause
    images = MemoryImages(data, mean=info.mean, std=info.std, device=target, seed=seed)
    log.info(
        "%s: %d %s images from %s, resident on %s",
        name,
        sum(images.class_sizes),
        split,
        data.source,
        images.device,
    )
    return images


def image_side(name: str, size: int | None) -> int:
    """Side in pixels of the square images: ``size``, or the data set's own.

    Raises:
        DataError: if there is none, or it is too small.
    """
    side = dataset_info(name).default_size if size is None else size
    if side is None:
        raise DataError(f"{name} has no size of its own: pass --size PIXELS")
    if side < _SMALLEST_SIDE:
        raise DataError(f"the size must be at least {_SMALLEST_SIDE} pixels, got {side}")
    return side


def _device(device: str | torch.device) -> torch.device:
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"images cannot be put on {target}: no CUDA device here, take cpu")
    return target


def _check_choice(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        listed = " or ".join(f"'{choice}'" for choice in known)
        raise DataError(f"the {what} is {listed}, got '{given}'")


def _read(
    name: str, root: Path | None, split: str, side: int, device: torch.device
) -> LabelledImages:
    if root is not None and root.is_file():
        raise DataError(f"the data root of {name} must be a folder, {root} is a file")
    match dataset_info(name).kind:
        case "idx":
            return _at_side(name, read_mnist(name, root, split), side, device)
        case "cifar":
            return _at_side(name, read_cifar(name, root, split), side, device)
        case "svhn":
            return _at_side(name, read_svhn(root, split), side, device)
        case "digits":
            return _at_side(name, read_digits(split), side, device)
    raise AssertionError(f"{name} comes as image files")


def _at_side(name: str, data: LabelledImages, side: int, device: torch.device) -> LabelledImages:
    refuse_without_room(name, (*data.images.shape[:2], side, side), device)
    return replace(data, images=resized(data.images, side))
