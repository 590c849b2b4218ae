"""The files of MNIST and Fashion-MNIST."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.errors import DataError
from .. import download
from .idx import read_idx
from .labelled import LabelledImages, check_labels

DEBIAN_FOLDERS = {"fashionmnist": Path("/usr/share/datasets/fashion-mnist")}

_TORCHVISION_NAMES = {"fashionmnist": "FashionMNIST", "mnist": "MNIST"}
_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_HOW_TO_GET = {
    "fashionmnist": "install the Debian package dataset-fashion-mnist, or pass --data-root "
    "with a folder that holds its four IDX files",
    "mnist": "pass --data-root with a folder that holds its four IDX files",
}
_CLASS_NAMES = {
    "fashionmnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "mnist": tuple(str(digit) for digit in range(10)),
}
_SIDE = 28


def read_mnist(name: str, root: Path | None, split: str) -> LabelledImages:
    """Read MNIST or Fashion-MNIST: grey uint8 ``(N, 1, 28, 28)``.

    A given root is the only folder searched; without one, the Debian package's folder and the
    cache are. Missing files are downloaded to the root or the cache.

    Args:
        name: "mnist" or "fashionmnist".
        root: a folder with the IDX files (or with torchvision's folders around them), or None.
        split: "train" or "test".

    Raises:
        DataError: if the files are not found and cannot be downloaded, or are damaged.
    """
    folder = _find_folder(name, root, split)
    image_file, label_file = (_find_file(folder, file) for file in _file_names(split))
    assert image_file is not None
    assert label_file is not None
    images = read_idx(image_file, 3)
    labels = read_idx(label_file, 1).astype(np.int64)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise DataError(
            f"images of {name} are {_SIDE}x{_SIDE} pixels, those of {image_file} are "
            f"{images.shape[1]}x{images.shape[2]}: it is another data set's file"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels: "
            "they do not belong together; fetch both again"
        )
    check_labels(labels, len(_CLASS_NAMES[name]), str(label_file))
    return LabelledImages(
        torch.from_numpy(images)[:, None], labels, _CLASS_NAMES[name], str(folder)
    )


def _file_names(split: str) -> tuple[str, str]:
    prefix = _SPLIT_PREFIX[split]
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def _find_file(folder: Path, file: str) -> Path | None:
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    return None


def _find_folder(name: str, root: Path | None, split: str) -> Path:
    raw = Path(_TORCHVISION_NAMES[name]) / "raw"
    if root is not None:
        folders = [root, root / raw]
    else:
        folders = [download.CACHE.expanduser() / raw]
        if name in DEBIAN_FOLDERS:
            folders.insert(0, DEBIAN_FOLDERS[name])
    for folder in folders:
        if all(_find_file(folder, file) for file in _file_names(split)):
            return folder
    try:
        _download(name, folders[-1], split)
    except OSError as cause:
        searched = " and ".join(str(folder) for folder in folders)
        raise DataError(
            f"the {split} files of {name} are not in {searched}, and downloading them failed "
            f"({cause}): {_HOW_TO_GET[name]}"
        ) from cause
    return folders[-1]


def _download(name: str, folder: Path, split: str) -> None:
    from torchvision import datasets

    source: Any = getattr(datasets, _TORCHVISION_NAMES[name])
    checksums: dict[str, str] = dict(source.resources)
    for file in _file_names(split):
        if _find_file(folder, file) is None:
            archive = f"{file}.gz"
            urls = [mirror + archive for mirror in source.mirrors]
            download.fetch(urls, folder / archive, checksums[archive])
