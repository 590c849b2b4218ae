"""Opening a data set by its name."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch

from ..common.checks import check_name
from ..common.errors import DataError
from .backends import LOADERS, open_image_files
from .memory import MemoryImages
from .protocol import RealImages
from .readers.digits import read_digits
from .readers.labelled import LabelledImages
from .readers.mnist import read_mnist
from .readers.resizing import resize_images
from .readers.torchvision_sets import read_cifar, read_svhn
from .registry import dataset_info
from .resources import check_free_memory
from .splits import TEST, SplitBackEnd, check_split, file_split, select_images
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
    hold_out: float = 0.0,
    sparse: bool = False,
) -> RealImages:
    """Open one split of a data set.

    Sets of image files are read through FFCV from a packed file, which is written first where
    there is none, or decoded by worker processes; see ``open_image_files``. The other sets are
    small and held on the device.

    Args:
        name: a key of ``DATASETS``, or "custom:FILE" for the classes of ImageNet listed in FILE.
        root: the data set's folder, or a packed ``.beton`` file; None where it is bundled,
            packaged or downloaded.
        split: "train", "held-out" or "test".
        size: side of the square images in pixels, at least 8; None for the set's own.
        device: where the images are served.
        seed: of the class-wise sampling.
        cache: where decoded images are kept: "device", "host", "none", or "auto" by free memory.
        loader: how image files are read: "ffcv", "folder" or "auto".
        workers: threads or processes that decode; None for one per core.
        classes: those that will be drawn, the only ones kept in memory; None for all.
        hold_out: share of every class, from 0 to below 1, that leaves the training images and
            becomes "held-out". The choice depends on nothing but the class and its size.
        sparse: only some images will be read, or all of them once: image files are neither packed
            nor kept in memory, whatever ``cache``.

    Raises:
        DataError: if a name, split or size is invalid, or the data are missing, damaged or too
            large.
    """
    info, side = dataset_info(name), image_side(name, size)
    check_split(split, hold_out)
    check_name("cache", cache, CACHES, DataError)
    check_name("loader", loader, LOADERS, DataError)
    target, folder = _check_device(device), None if root is None else Path(root).expanduser()
    try:
        if info.kind in _IMAGE_FILES:
            back_end = open_image_files(
                name,
                folder,
                file_split(split),
                side,
                loader=loader,
                workers=workers,
                pack=not sparse,
            )
            if hold_out and split != TEST:
                back_end = SplitBackEnd(back_end, split, hold_out)
            return StreamedImages(
                back_end,
                mean=info.mean,
                std=info.std,
                device=target,
                seed=seed,
                cache="none" if sparse else cast(Cache, cache),
                classes=classes,
            )
        if loader != "auto" or cache in ("host", "none"):
            raise DataError(f"{name} is small and held on the device: leave out --loader, --cache")
        data = _read(name, folder, file_split(split), side, target)
        if hold_out and split != TEST:
            data = select_images(data, split, hold_out)
    except ModuleNotFoundError as missing:
        raise DataError(
            f"{name} needs the Python package {missing.name}: pip install 'm3d_fast[condense]'"
        ) from missing
    except OSError as cause:
        raise DataError(f"{name} cannot be read: {cause}") from cause
    images = MemoryImages(data, mean=info.mean, std=info.std, device=target, seed=seed)
    count = f"{sum(images.class_sizes)} {split} images"
    log.info("%s: %s from %s, resident on %s", name, count, data.source, images.device)
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


def _check_device(device: str | torch.device) -> torch.device:
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"images cannot be put on {target}: no CUDA device here, take cpu")
    return target


def _read(
    name: str, root: Path | None, split: str, side: int, device: torch.device
) -> LabelledImages:
    if root is not None and root.is_file():
        raise DataError(f"the data root of {name} must be a folder, {root} is a file")
    match dataset_info(name).kind:
        case "idx":
            data = read_mnist(name, root, split)
        case "cifar":
            data = read_cifar(name, root, split)
        case "svhn":
            data = read_svhn(root, split)
        case "digits":
            data = read_digits(split)
        case _:
            raise AssertionError(f"{name} comes as image files")
    count, channels = data.images.shape[:2]
    what, advice = f"{name} ({count} images of {side} px)", "take a smaller --size or subset"
    check_free_memory(what, count * channels * side**2, device, advice)
    return replace(data, images=resize_images(data.images, side))
