import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

import m3d_fast.loaders
from m3d_fast.loaders import DATASETS, DataError, open_dataset


def write_images(folder: Path, colours: Sequence[int], suffix: str = "png") -> None:
    """One plain image per colour, in this order by name."""
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (12, 10), (colour, 0, 0)).save(folder / f"{number}.{suffix}")


def reds(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for split, shift in (("train", 0), ("test", 100)):
        write_images(folder / split / "dog", [shift + 1, shift + 2, shift + 3])
        write_images(folder / split / "cat", [shift + 11, shift + 12])
    return folder


@pytest.mark.parametrize(("split", "shift"), [("train", 0), ("test", 100)])
def test_folders_are_classes_in_alphabetical_order(root: Path, split: str, shift: int) -> None:
    opened = open_dataset("folder", root, split, 8)
    assert opened.class_names == ("cat", "dog")
    assert opened.class_sizes == (2, 3)
    assert opened.image_shape == (3, 8, 8)
    assert opened.mean == (0.485, 0.456, 0.406)
    assert opened.std == (0.229, 0.224, 0.225)
    assert reds(opened.take(0, range(2))) == [shift + 11, shift + 12]
    assert reds(opened.take(1, range(3))) == [shift + 1, shift + 2, shift + 3]


def test_val_stands_in_for_test_which_comes_first(root: Path) -> None:
    (root / "test").rename(root / "val")
    assert reds(open_dataset("folder", root, "test", 8).take(0, [0])) == [111]
    write_images(root / "test" / "cat", [77])
    write_images(root / "test" / "dog", [78])
    assert reds(open_dataset("folder", root, "test", 8).take(0, [0])) == [77]


def test_classes_may_lie_in_the_root_itself(root: Path) -> None:
    for folder in (root / "train").iterdir():
        folder.rename(root / folder.name)
    (root / "train").rmdir()
    train = open_dataset("folder", root, "train", 8)
    assert train.class_names == ("cat", "dog")
    assert reds(train.take(0, [0, 1])) == [11, 12]
    assert reds(open_dataset("folder", root, "test", 8).take(0, [0, 1])) == [111, 112]


def test_other_files_hidden_ones_and_inner_folders(root: Path) -> None:
    cat = root / "train" / "cat"
    (cat / "notes.txt").write_text("no image")
    (cat / "._0.png").write_bytes(b"left by a file manager")
    (root / "train" / ".cache").mkdir()
    write_images(cat / "deeper", [200], "JPEG")
    opened = open_dataset("folder", root, size=8)
    assert opened.class_sizes == (3, 3)
    assert abs(reds(opened.take(0, range(3)))[2] - 200) <= 2


def test_a_damaged_image_is_named(root: Path) -> None:
    path = root / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=f"the image {path} cannot be decoded"):
        open_dataset("folder", root, size=8)


def test_size_and_root_must_be_given(root: Path) -> None:
    with pytest.raises(DataError, match="folder has no size of its own: pass --size PIXELS"):
        open_dataset("folder", root)
    with pytest.raises(DataError, match="folder is read from a folder of yours: pass --data-root"):
        open_dataset("folder", size=8)
    with pytest.raises(DataError, match=f"the folder {root}/no does not exist: pass --data-root"):
        open_dataset("folder", root / "no", size=8)


def test_one_class_or_none_is_refused(root: Path) -> None:
    for image in (root / "train" / "dog").iterdir():
        image.unlink()
    message = f"class 'dog' has no image in {root}/train/dog: add some"
    with pytest.raises(DataError, match=message):
        open_dataset("folder", root, size=8)
    (root / "train" / "dog").rmdir()
    message = f"{root}/train must hold .* two or more classes, it holds only the class 'cat'"
    with pytest.raises(DataError, match=message):
        open_dataset("folder", root, size=8)
    with pytest.raises(DataError, match="it holds no class folder"):
        open_dataset("folder", root / "train" / "cat", size=8)


def test_the_splits_must_have_the_same_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")
    message = f"{root}/test and {root}/train must hold the same classes, 'dog' is in only one"
    with pytest.raises(DataError, match=message):
        open_dataset("folder", root, "test", 8)


def test_a_missing_test_split_is_named(root: Path) -> None:
    (root / "test").rename(root / "testing")
    message = f"the test images belong in {root}/test or {root}/val, neither exists"
    with pytest.raises(DataError, match=message):
        open_dataset("folder", root, "test", 8)


def subset_lists() -> dict[str, list[str]]:
    folder = Path(m3d_fast.loaders.__file__).parent
    return json.loads((folder / "imagenet_subsets.json").read_text())


IMAGENET = [name for name, info in DATASETS.items() if info.kind == "imagenet"]


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_subsets_keep_their_lists_order(name: str, tmp_path: Path) -> None:
    wnids = subset_lists()[name]
    for label, wnid in enumerate(wnids):
        write_images(tmp_path / "train" / wnid, [label], "JPEG")
        write_images(tmp_path / "val" / wnid, [label + 100], "JPEG")
    # a class of ImageNet that the subset leaves out
    write_images(tmp_path / "train" / "n00000001", [255], "JPEG")
    for split, shift in (("train", 0), ("test", 100)):
        opened = open_dataset(name, tmp_path, split, size=8)
        assert opened.class_names == tuple(wnids)
        for label in range(len(wnids)):
            assert abs(reds(opened.take(label, [0]))[0] - label - shift) <= 2


def test_subsets_are_the_published_ones() -> None:
    lists = subset_lists()
    assert lists["imagenet100"][:10] == lists["imagenet10"]
    assert lists["imagenet10"] != sorted(lists["imagenet10"])
    assert lists["imagenette"][0] == "n01440764"
    for name in IMAGENET:
        assert len(set(lists[name])) == len(lists[name]) == DATASETS[name].num_classes


def test_imagenet_is_224_pixels_unless_told(tmp_path: Path) -> None:
    for wnid in subset_lists()["imagenette"]:
        write_images(tmp_path / "train" / wnid, [1], "JPEG")
    assert open_dataset("imagenette", tmp_path).image_shape == (3, 224, 224)


def test_a_missing_imagenet_class_is_named(tmp_path: Path) -> None:
    wnids = subset_lists()["imagenette"]
    for wnid in wnids[:-1]:
        write_images(tmp_path / "train" / wnid, [1], "JPEG")
    missing = tmp_path / "train" / wnids[-1]
    message = f"imagenette needs the folder {missing} with the images of class {wnids[-1]}, it"
    with pytest.raises(DataError, match=message):
        open_dataset("imagenette", tmp_path)
    missing.mkdir()
    with pytest.raises(DataError, match=f"class '{wnids[-1]}' has no image in {missing}"):
        open_dataset("imagenette", tmp_path)
    with pytest.raises(DataError, match=re.escape(f"needs the folder {tmp_path}/val/{wnids[0]}")):
        open_dataset("imagenette", tmp_path, "test")
    with pytest.raises(DataError, match="imagenette is read from a folder of yours"):
        open_dataset("imagenette")
