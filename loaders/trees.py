"""Which image files of a folder tree belong to which class?"""

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError
from .subsets import subset_classes

_SPLIT_FOLDERS = ("train", "test", "val")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageTree:
    """The files of one split.

    Attributes:
        folder: the split's folder.
        files: for every class name, in label order, its image files, sorted.
    """

    folder: Path
    files: dict[str, list[Path]]


def folder_tree(root: Path | None, split: str) -> ImageTree:
    """List the user's own images: ``ROOT/train/<class>/*`` and ``ROOT/test`` or ``ROOT/val``.

    Without a folder ``train``, the class folders for training may lie in ``ROOT`` itself. Labels
    follow the sorted class names. Folders within a class are walked too.

    Raises:
        DataError: if folders are missing, a class is alone or empty, or the splits' classes
            differ.
    """
    root = _existing(root, "folder")
    train = root / "train" if (root / "train").is_dir() else root
    # with the classes in ROOT itself, the folder of the other split stands beside them
    classes = _class_folders(train, ignored=_SPLIT_FOLDERS if train == root else ())
    if len(classes) < 2:
        found = f"only the class '{classes[0]}'" if classes else "no class folder"
        raise DataError(
            f"{train} must hold a folder of images for each of two or more classes, "
            f"it holds {found}"
        )
    if split == "train":
        return ImageTree(train, _listed(train, classes))
    test = next((root / side for side in ("test", "val") if (root / side).is_dir()), None)
    if test is None:
        raise DataError(
            f"the test images belong in {root / 'test'} or {root / 'val'}, neither exists"
        )
    differing = sorted(set(classes) ^ set(_class_folders(test)))
    if differing:
        raise DataError(
            f"{test} and {train} must hold the same classes, '{differing[0]}' is in only one"
        )
    return ImageTree(test, _listed(test, classes))


def imagenet_tree(name: str, root: Path | None, split: str) -> ImageTree:
    """List a subset's files in ``ROOT/train/<wnid>/*`` or ``ROOT/val/<wnid>/*``, in its order.

    Raises:
        DataError: if a class's folder is missing or holds no image.
    """
    root = _existing(root, name)
    folder = root / ("train" if split == "train" else "val")
    classes = subset_classes(name)
    for wnid in classes:
        if not (folder / wnid).is_dir():
            raise DataError(
                f"{name} needs the folder {folder / wnid} with the images of class {wnid}, it does "
                "not exist: --data-root must hold train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
            )
    return ImageTree(folder, _listed(folder, classes))


def _existing(root: Path | None, name: str) -> Path:
    if root is None:
        raise DataError(f"{name} is read from a folder of yours: pass --data-root DIR")
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist: pass --data-root with one that does")
    return root


def _class_folders(folder: Path, *, ignored: tuple[str, ...] = ()) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return tuple(
        sorted(name for name in folders if name not in ignored and not name.startswith("."))
    )


def _listed(folder: Path, classes: tuple[str, ...]) -> dict[str, list[Path]]:
    files = {name: _image_files(folder / name) for name in classes}
    for name, members in files.items():
        if not members:
            raise DataError(
                f"class '{name}' has no image in {folder / name}: "
                f"add some ({', '.join(_SUFFIXES)}) or remove the class"
            )
    return files


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        Path(parent) / file
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        # names with a leading dot are what file managers leave behind
        if file.lower().endswith(_SUFFIXES) and not file.startswith(".")
    )
