"""The image files of a data set, in its usual folder layouts."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...common.errors import DataError
from ..registry import dataset_info
from ..subsets import subset_classes
from .trees import ClassFiles, ImageTree, check_folder, class_folder_tree, folder_tree

# below --data-root; the longer ones are those of Kaggle's archive
_HOMES = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_KAGGLE = "LOC_val_solution.csv"
_GROUND_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_DEVKIT = "ILSVRC2012_devkit_t12/data"

_TINY_FOLDER, _TINY_CLASSES = "tiny-imagenet-200", 200


def image_tree(name: str, root: Path | None, split: str) -> ImageTree:
    """List the image files of a data set of such files.

    Args:
        name: "folder", "tinyimagenet", "imagenet1k", a subset of it, or "custom:FILE".
        root: the data set's folder.
        split: "train" or "test".

    Raises:
        DataError: if the data set has no image files, or folders or images are missing.
    """
    match dataset_info(name).kind:
        case "folder":
            return folder_tree(root, split)
        case "imagenet":
            return imagenet_tree(name, root, split)
        case "tinyimagenet":
            return tinyimagenet_tree(root, split)
    raise DataError(f"{name} does not come as image files")


def imagenet_tree(name: str, root: Path | None, split: str) -> ImageTree:
    """List a subset's files, in its order of classes.

    Training images are in ``train/<wnid>/``, those of the validation split in ``val/<wnid>/`` or
    all in ``val/``; these folders are in ``ROOT`` or, as in Kaggle's archive, deeper.

    Args:
        name: "imagenet1k", a subset of it, or "custom:FILE".
        root: the folder of ImageNet.
        split: "train" or "test".

    Raises:
        DataError: if a class's folder is missing or holds no image, or the classes of a flat
            validation folder are unknown or some of its images missing.
    """
    root = check_folder(root, name)
    side = "train" if split == "train" else "val"
    home = next((root / home for home in _HOMES if (root / home / side).is_dir()), root)
    folder, classes = home / side, subset_classes(name)
    if (
        split != "train"
        and not (folder / classes[0]).is_dir()
        and any(folder.glob("ILSVRC2012_val_*"))
    ):
        return _list_flat_folder(name, folder, classes, _read_labels(folder, root))
    for wnid in classes:
        if not (folder / wnid).is_dir():
            raise DataError(
                f"{name} needs the folder {folder / wnid} with the images of class {wnid}, it does "
                "not exist: --data-root must hold train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
            )
    return class_folder_tree(folder, classes)


def tinyimagenet_tree(root: Path | None, split: str) -> ImageTree:
    """List Tiny ImageNet as unpacked: ``train/<wnid>/images/``, ``val/images/``.

    Labels follow ``wnids.txt``. A validation split sorted into ``val/<wnid>/`` is read too.

    Raises:
        DataError: if a file or folder of that layout is missing.
    """
    root = check_folder(root, "tinyimagenet")
    home = root if (root / "wnids.txt").is_file() else root / _TINY_FOLDER
    if not (home / "wnids.txt").is_file():
        raise DataError(
            f"tinyimagenet needs wnids.txt in {root} or {home}: --data-root must hold wnids.txt, "
            "train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
        )
    classes = (home / "wnids.txt").read_text().split()
    if len(set(classes)) != _TINY_CLASSES or len(classes) != _TINY_CLASSES:
        raise DataError(
            f"{home / 'wnids.txt'} must name {_TINY_CLASSES} different classes, it names "
            f"{len(set(classes))}: the file is damaged"
        )
    folder = home / ("train" if split == "train" else "val")
    table = folder / "val_annotations.txt"
    if split != "train" and not (folder / classes[0]).is_dir():
        if not table.is_file():
            raise DataError(f"tinyimagenet needs {table}, which says the class of every image")
        rows = [line.split("\t") for line in table.read_text().splitlines()]
        return _list_flat_folder(
            "tinyimagenet", folder / "images", classes, {row[0]: row[1] for row in rows}
        )
    missing = next((wnid for wnid in classes if not (folder / wnid).is_dir()), None)
    if missing:
        raise DataError(
            f"tinyimagenet needs the folder {folder / missing}, it does not exist: unpack it again"
        )
    return class_folder_tree(folder, classes)


def _list_flat_folder(
    name: str, folder: Path, classes: Sequence[str], labels: dict[str, str]
) -> ImageTree:
    """List the images of ``classes`` in one folder; ``labels`` maps file names to classes."""
    present = {file.name for file in folder.iterdir()}
    members: dict[str, list[str]] = defaultdict(list)
    for file, wnid in labels.items():
        members[wnid].append(file)
    for wnid in classes:
        if not members[wnid]:
            raise DataError(f"{name}: no image of {folder} is of class {wnid}")
    wanted = [file for wnid in classes for file in members[wnid]]
    missing = sorted(set(wanted) - present)
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} validation images of {name}, "
            f"the first is {missing[0]}: unpack them again"
        )
    return ImageTree(folder, {wnid: ClassFiles(folder, members[wnid]) for wnid in classes})


def _read_labels(folder: Path, root: Path) -> dict[str, str]:
    """WordNet ids of the files of a flat validation folder, by file name."""
    near = [root, folder.parent, folder]
    if folder.parent.name == "CLS-LOC":
        near.append(folder.absolute().parents[3])  # Kaggle's tables are beside its folder ILSVRC
    searched = [outer / inner for outer in near for inner in (".", _DEVKIT, "data")]
    if kaggle := _find_file(searched, _KAGGLE):
        with kaggle.open(newline="") as file:
            return {
                f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0]
                for row in csv.DictReader(file)
            }
    truth, meta = _find_file(searched, _GROUND_TRUTH), _find_file(searched, _META)
    # a list of synsets sorted by name does not help: the ground truth counts in the devkit's order
    if truth is None or meta is None:
        raise DataError(
            f"the images of {folder} are not in class folders, and no list of their classes is "
            f"in {root}: put there the devkit's {_GROUND_TRUTH} and {_META} "
            f"(or the folder {_DEVKIT}), or Kaggle's {_KAGGLE}"
        )
    return _read_ground_truth(truth, meta)


def _find_file(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _read_ground_truth(truth: Path, meta: Path) -> dict[str, str]:
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        ids = synsets["ILSVRC2012_ID"].tolist()
        wnids = dict(zip(ids, synsets["WNID"].tolist(), strict=True))
    # a damaged file makes scipy raise nearly anything
    except Exception as cause:
        raise DataError(f"{meta} is not the devkit's table of synsets ({cause})") from cause
    labels = {}
    for number, line in enumerate(truth.read_text().split(), 1):
        if not line.isdecimal() or int(line) not in wnids:
            raise DataError(f"{truth}, line {number}: {meta} has no class '{line}'")
        labels[f"ILSVRC2012_val_{number:08}.JPEG"] = wnids[int(line)]
    return labels
