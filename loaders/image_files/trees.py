"""The image files of a folder tree, by class."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import DataError

# folders beside class folders in ROOT that hold no class; packed files are in the last
_NO_CLASSES = ("train", "test", "val", "m3d_fast")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


class ClassFiles(Sequence[Path]):
    """The image files of one class: their common folder once, and a name for each.

    ImageNet-1K's 1.28 million paths would take 0.5 GB, their names take 0.11 GB.

    Args:
        folder: that holds all files, at any depth.
        names: relative to ``folder``; sorted here.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self.names = sorted(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self.folder / name for name in self.names[index]]
        return self.folder / self.names[index]


@dataclass(frozen=True)
class ImageTree:
    """The files of one split.

    Attributes:
        folder: the split's folder.
        files: for every class name, in label order, its image files, sorted by name.
    """

    folder: Path
    files: dict[str, ClassFiles]


def folder_tree(root: Path | None, split: str) -> ImageTree:
    """List the user's own images: ``ROOT/train/<class>/*`` and ``ROOT/test`` or ``ROOT/val``.

    Without a folder ``train``, the class folders for training may be in ``ROOT`` itself. Labels
    follow the sorted class names. Folders within a class are searched too.

    Raises:
        DataError: if folders are missing, there is only one class, a class is empty, or the
            classes of the splits differ.
    """
    root = check_folder(root, "folder")
    train = root / "train" if (root / "train").is_dir() else root
    # where ROOT holds the classes, it holds the folder of the other split too
    classes = _list_class_folders(train, ignored=_NO_CLASSES if train == root else ())
    if len(classes) < 2:
        found = f"only the class '{classes[0]}'" if classes else "no class folder"
        raise DataError(
            f"{train} must hold a folder of images for each of two or more classes, "
            f"it holds {found}"
        )
    if split == "train":
        return class_folder_tree(train, classes)
    test = next((root / side for side in ("test", "val") if (root / side).is_dir()), None)
    if test is None:
        raise DataError(
            f"the test images belong in {root / 'test'} or {root / 'val'}, neither exists"
        )
    differing = sorted(set(classes) ^ set(_list_class_folders(test)))
    if differing:
        raise DataError(
            f"{test} and {train} must hold the same classes, '{differing[0]}' is in only one"
        )
    return class_folder_tree(test, classes)


def class_folder_tree(folder: Path, classes: Sequence[str]) -> ImageTree:
    """List ``FOLDER/<class>/`` of every class, folders within it too.

    Raises:
        DataError: if a class holds no image.
    """
    files = {name: ClassFiles(folder / name, _list_images(folder / name)) for name in classes}
    for name, members in files.items():
        if not members:
            raise DataError(
                f"class '{name}' has no image in {folder / name}: "
                f"add some ({', '.join(_SUFFIXES)}) or remove the class"
            )
    return ImageTree(folder, files)


def check_folder(root: Path | None, name: str) -> Path:
    """Return ``root`` if it is a folder.

    Raises:
        DataError: if it is not, or None.
    """
    if root is None:
        raise DataError(f"{name} is read from a folder: pass --data-root DIR")
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist: pass --data-root with one that does")
    return root


def _list_class_folders(folder: Path, *, ignored: tuple[str, ...] = ()) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return tuple(
        sorted(name for name in folders if name not in ignored and not name.startswith("."))
    )


def _list_images(folder: Path) -> list[str]:
    return [
        file if parent == str(folder) else os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        # file managers leave files with a leading dot behind
        if file.lower().endswith(_SUFFIXES) and not file.startswith(".")
    ]
