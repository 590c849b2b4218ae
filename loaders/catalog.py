"""How is a data set opened by its name?"""

import difflib
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .decode import decode
from .digits import read_digits
from .errors import DataError
from .imagenet import imagenet_tree, tinyimagenet_tree
from .labelled import LabelledImages
from .memory import MemoryImages
from .mnist import read_mnist
from .protocol import RealImages
from .registry import DATASETS, DatasetInfo
from .resize import resized
from .room import refuse_without_room
from .subsets import CUSTOM, subset_classes
from .through_torchvision import read_cifar, read_svhn
from .trees import ImageTree, folder_tree

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
    info = dataset_info(name)
    if split not in ("train", "test"):
        raise DataError(f"the split is 'train' or 'test', got '{split}'")
    target = _device(device)
    try:
        data = _read(name, _root(root), split, image_side(name, size), target)
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


def dataset_info(name: str) -> DatasetInfo:
    """What is known of a data set before it is opened.

    Raises:
        DataError: for a name that is not known, with the nearest ones.
    """
    if name.startswith(CUSTOM):
        title = f"ImageNet: the classes of {name.removeprefix(CUSTOM)}"
        count = len(subset_classes(name))
        return replace(DATASETS["imagenet1k"], title=title, num_classes=count)
    if name not in DATASETS:
        near = difflib.get_close_matches(name.lower(), DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(DATASETS)}"
        raise DataError(f"unknown data set '{name}': {hint}")
    return DATASETS[name]


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


def _root(root: str | os.PathLike[str] | None) -> Path | None:
    if root is None:
        return None
    folder = Path(root).expanduser()
    if folder.is_file():
        raise DataError(f"the data root must be a folder, {folder} is a file")
    return folder


def _read(
    name: str, root: Path | None, split: str, side: int, device: torch.device
) -> LabelledImages:
    match dataset_info(name).kind:
        case "idx":
            return _at_side(name, read_mnist(name, root, split), side, device)
        case "cifar":
            return _at_side(name, read_cifar(name, root, split), side, device)
        case "svhn":
            return _at_side(name, read_svhn(root, split), side, device)
        case "digits":
            return _at_side(name, read_digits(split), side, device)
        case "folder" | "imagenet" | "tinyimagenet":
            return _decoded(name, image_tree(name, root, split), side, device)


def image_tree(name: str, root: Path | None, split: str) -> ImageTree:
    """List the image files of a data set that comes as such.

    Args:
        name: "folder", "tinyimagenet", "imagenet1k", a subset of it, or "custom:FILE".
        root: the data set's folder.
        split: "train" or "test".

    Raises:
        DataError: if the name is of another kind, or folders or images are missing.
    """
    match dataset_info(name).kind:
        case "folder":
            return folder_tree(root, split)
        case "imagenet":
            return imagenet_tree(name, root, split)
        case "tinyimagenet":
            return tinyimagenet_tree(root, split)
    raise DataError(f"{name} does not come as image files")


def _at_side(name: str, data: LabelledImages, side: int, device: torch.device) -> LabelledImages:
    refuse_without_room(name, (*data.images.shape[:2], side, side), device)
    return replace(data, images=resized(data.images, side))


def _decoded(name: str, tree: ImageTree, side: int, device: torch.device) -> LabelledImages:
    counts = [len(members) for members in tree.files.values()]
    refuse_without_room(name, (sum(counts), 3, side, side), device)
    paths = [path for members in tree.files.values() for path in members]
    return LabelledImages(
        decode(paths, side, device),
        np.repeat(np.arange(len(counts)), counts),
        tuple(tree.files),
        str(tree.folder),
    )
