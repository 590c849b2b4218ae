"""CIFAR-10, CIFAR-100 and SVHN, read by torchvision."""

import os
import shutil
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.errors import DataError
from .. import download
from .labelled import LabelledImages

_ARCHIVE_NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def read_cifar(name: str, root: Path | None, split: str) -> LabelledImages:
    """Read CIFAR-10 or CIFAR-100: uint8 ``(N, 3, 32, 32)``.

    Args:
        name: "cifar10" or "cifar100".
        root: the folder around torchvision's ``cifar-10-batches-py`` (or that folder itself), or
            the one that holds the ``.tar.gz``; None for the cache.
        split: "train" or "test".

    Raises:
        DataError: if the files are missing and cannot be downloaded, or are damaged.
    """
    from torchvision import datasets

    source: Any = getattr(datasets, _ARCHIVE_NAMES[name])
    home = _resolve_home(root)
    if home.name == source.base_folder:
        home = home.parent
    folder = home / source.base_folder
    listed = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    checksums = {folder / file: md5 for file, md5 in listed}
    missing = [path for path in checksums if not path.is_file()]
    if missing:
        try:
            _unpack(source, home, missing)
        except (OSError, KeyError, tarfile.TarError) as cause:
            raise _describe_missing(
                name, missing[0], f"the archive {source.filename}", cause
            ) from cause
    try:
        with warnings.catch_warnings():
            # the archive's pickles say align=0 where they mean False: numpy 2.4.0 warns of it
            warnings.filterwarnings("ignore", message=r".*align should be passed")
            dataset = source(home, train=split == "train")
    except RuntimeError as cause:
        raise _describe_damage(checksums) from cause
    return LabelledImages(
        torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))),
        np.asarray(dataset.targets, dtype=np.int64),
        tuple(dataset.classes),
        str(folder),
    )


def read_svhn(root: Path | None, split: str) -> LabelledImages:
    """Read SVHN's cropped digits: uint8 ``(N, 3, 32, 32)``, label 0 for the digit 0.

    Args:
        root: the folder with ``train_32x32.mat`` and ``test_32x32.mat``; None for the cache.
        split: "train" or "test".

    Raises:
        DataError: if the file is missing and cannot be downloaded, or is damaged.
    """
    from torchvision.datasets import SVHN

    home = _resolve_home(root)
    url, file, md5 = SVHN.split_list[split]
    path = home / file
    if not path.is_file():
        try:
            download.fetch([url], path, md5)
        except OSError as cause:
            raise _describe_missing("svhn", path, file, cause) from cause
    try:
        dataset = SVHN(home, split=split)
    except RuntimeError as cause:
        raise _describe_damage({path: md5}) from cause
    return LabelledImages(
        torch.from_numpy(np.ascontiguousarray(dataset.data)),
        dataset.labels,
        tuple(str(digit) for digit in range(10)),
        str(path),
    )


def _resolve_home(root: Path | None) -> Path:
    return download.CACHE.expanduser() if root is None else root


def _unpack(source: Any, home: Path, missing: list[Path]) -> None:
    archive = home / source.filename
    fetched = not archive.is_file()
    if fetched:
        download.fetch([source.url], archive, source.tgz_md5)
    elif download.file_md5(archive) != source.tgz_md5:
        raise OSError(f"{archive} is damaged, delete it")
    with (
        tarfile.open(archive) as tar,
        tempfile.TemporaryDirectory(dir=home, prefix=".unpack-") as temporary,
    ):
        for path in missing:
            packed = tar.extractfile(f"{source.base_folder}/{path.name}")
            assert packed is not None
            complete = Path(temporary) / path.name
            with complete.open("wb") as file:
                shutil.copyfileobj(packed, file)
            path.parent.mkdir(exist_ok=True)
            os.replace(complete, path)
    if fetched:
        archive.unlink()


def _describe_missing(name: str, path: Path, what: str, cause: Exception) -> DataError:
    return DataError(
        f"{name} needs {path}, which is missing, and downloading it failed ({cause}): "
        f"pass --data-root with a folder that holds {what}"
    )


def _describe_damage(checksums: dict[Path, str]) -> DataError:
    for path, md5 in checksums.items():
        if download.file_md5(path) != md5:
            return DataError(f"{path} is damaged (wrong checksum): delete it and fetch it again")
    return DataError(f"{next(iter(checksums)).parent} cannot be read: delete it and fetch it again")
