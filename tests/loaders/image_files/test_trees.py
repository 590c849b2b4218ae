import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import m3d_fast.loaders
from m3d_fast.loaders import DATASETS, DataError, dataset_info, open_dataset
from m3d_fast.loaders.image_files.decoding import decode_image
from m3d_fast.loaders.image_files.layouts import image_tree
from m3d_fast.loaders.image_files.trees import ImageTree


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
    with pytest.raises(DataError, match="folder is read from a folder: pass --data-root"):
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
        write_images(tmp_path / "train" / wnid, [label % 120], "JPEG")
        write_images(tmp_path / "val" / wnid, [label % 120 + 100], "JPEG")
    # a class of ImageNet that the subset leaves out
    write_images(tmp_path / "train" / "n00000001", [255], "JPEG")
    for split, shift in (("train", 0), ("test", 100)):
        tree = image_tree(name, tmp_path, split)
        assert list(tree.files) == wnids
        for label, (file,) in enumerate(tree.files.values()):
            red = decode_image(file, size=8)[0, 0, 0].item()
            assert abs(red - label % 120 - shift) <= 2


def test_imagenet_may_lie_as_in_kaggles_archive(tmp_path: Path) -> None:
    home = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for label, wnid in enumerate(subset_lists()["imagenette"]):
        write_images(home / "train" / wnid, [label], "JPEG")
    for root in (tmp_path, tmp_path / "ILSVRC", home):
        assert image_tree("imagenette", root, "train").folder == home / "train"


def flat_validation(folder: Path, wnids: Sequence[str], *, each: int = 2) -> dict[str, str]:
    """Images of the classes in turn, red by their number; returns the class of every file."""
    folder.mkdir(parents=True)
    labels = {}
    for number in range(1, each * len(wnids) + 1):
        file = f"ILSVRC2012_val_{number:08}.JPEG"
        Image.new("RGB", (12, 10), (10 * number, 0, 0)).save(folder / file)
        labels[file] = wnids[(number - 1) % len(wnids)]
    return labels


def write_devkit(folder: Path, labels: dict[str, str]) -> None:
    """The devkit's two files; its classes are not sorted, and inner nodes follow."""
    folder.mkdir(parents=True)
    wnids = [*sorted(set(labels.values()), reverse=True), "n00001740"]
    synsets = np.zeros((len(wnids), 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    for number, wnid in enumerate(wnids):
        synsets[number, 0] = (number + 1, wnid)
    savemat(folder / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{wnids.index(wnid) + 1}\n" for wnid in labels.values())
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


def write_kaggle(folder: Path, labels: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{file[:-5]},{wnid} 1 2 30 40 {wnid} 5 6 7 8 \n" for file, wnid in labels.items()]
    table = folder / "LOC_val_solution.csv"
    table.write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))


IMAGENETTE = json.loads(
    Path(m3d_fast.loaders.__file__).with_name("imagenet_subsets.json").read_text()
)["imagenette"]
# classes in the order of the images, one of which imagenette leaves out
SHUFFLED = [*IMAGENETTE[5:], "n01443537", *IMAGENETTE[:5]]


def assert_flat(tree: ImageTree, folder: Path, labels: dict[str, str]) -> None:
    assert list(tree.files) == IMAGENETTE
    for wnid in IMAGENETTE:
        expected = [folder / file for file, of in labels.items() if of == wnid]
        assert len(expected) == 2
        assert list(tree.files[wnid]) == expected


@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", "data", "kit"])
def test_flat_validation_images_with_the_devkit(place: str, tmp_path: Path) -> None:
    root = tmp_path / "kit" if place == "kit" else tmp_path
    labels = flat_validation(tmp_path / "images" / "val", SHUFFLED)
    write_devkit(tmp_path / place, labels)
    (tmp_path / "images" / "val").rename(root / "val")
    assert_flat(image_tree("imagenette", root, "test"), root / "val", labels)
    opened = open_dataset("imagenette", root, "test", 8)
    # the class imagenette lists first is the seventh to be shown: images 7 and 18 of 22
    assert reds(opened.take(0, [0, 1])) == pytest.approx([70, 180], abs=2)


def test_flat_validation_images_with_kaggles_table(tmp_path: Path) -> None:
    folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    labels = flat_validation(folder, SHUFFLED)
    write_kaggle(tmp_path, labels)
    for root in (tmp_path, tmp_path / "ILSVRC", folder.parent):
        assert_flat(image_tree("imagenette", root, "test"), folder, labels)


def test_flat_validation_images_that_cannot_be_told_apart(tmp_path: Path) -> None:
    labels = flat_validation(tmp_path / "val", SHUFFLED)
    message = (
        f"the images of {tmp_path}/val are not in class folders, and no list of their classes is "
        f"in {tmp_path}: put there the devkit's ILSVRC2012_validation_ground_truth.txt and "
        "meta.mat"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        image_tree("imagenette", tmp_path, "test")
    write_devkit(tmp_path / "data", labels)
    # a mapping sorted by name is another order than the ground truth's
    (tmp_path / "data" / "meta.mat").rename(tmp_path / "meta")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    with pytest.raises(DataError, match="no list of their classes is in"):
        image_tree("imagenette", tmp_path, "test")
    (tmp_path / "data" / "meta.mat").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"data/meta\.mat is not the devkit's table of synsets"):
        image_tree("imagenette", tmp_path, "test")
    (tmp_path / "meta").rename(tmp_path / "data" / "meta.mat")
    truth = tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text(truth.read_text().replace("11\n", "77\n", 1))
    with pytest.raises(DataError, match=rf"{truth}, line \d+: .*meta.mat has no class '77'"):
        image_tree("imagenette", tmp_path, "test")


def test_a_missing_validation_image_is_named(tmp_path: Path) -> None:
    labels = flat_validation(tmp_path / "val", SHUFFLED)
    write_kaggle(tmp_path, labels)
    file = next(file for file, wnid in labels.items() if wnid == IMAGENETTE[3])
    (tmp_path / "val" / file).unlink()
    message = f"val lacks 1 of the 20 validation images of imagenette, the first is {file}"
    with pytest.raises(DataError, match=message):
        image_tree("imagenette", tmp_path, "test")
    without = {file: wnid for file, wnid in labels.items() if wnid != IMAGENETTE[3]}
    write_kaggle(tmp_path, without)
    with pytest.raises(DataError, match=f"no image of .* is of class {IMAGENETTE[3]}"):
        image_tree("imagenette", tmp_path, "test")


def tiny(root: Path) -> list[str]:
    """Tiny ImageNet with an image per class and split, red by label; returns its classes."""
    wnids = [f"n{(77 * number) % 200:08}" for number in range(200)]
    rows = []
    for label, wnid in enumerate(wnids):
        write_images(root / "train" / wnid / "images", [label], "JPEG")
        rows.append(f"val_{199 - label}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "images").mkdir(parents=True)
    for label in range(200):
        colour = (200 - label, 0, 0)
        Image.new("RGB", (64, 64), colour).save(root / f"val/images/val_{199 - label}.JPEG")
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return wnids


def test_tinyimagenet_comes_as_unpacked(tmp_path: Path) -> None:
    wnids = tiny(tmp_path / "tiny-imagenet-200")
    assert wnids != sorted(wnids)
    for root in (tmp_path, tmp_path / "tiny-imagenet-200"):
        train = open_dataset("tinyimagenet", root)
        test = open_dataset("tinyimagenet", root, "test")
        assert train.class_names == test.class_names == tuple(wnids)
        assert train.image_shape == (3, 64, 64)
        for label in (0, 1, 77, 199):
            assert abs(reds(train.take(label, [0]))[0] - label) <= 2
            assert abs(reds(test.take(label, [0]))[0] - (200 - label)) <= 2


def test_tinyimagenet_validation_in_class_folders(tmp_path: Path) -> None:
    wnids = tiny(tmp_path)
    for row in (tmp_path / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid, *_ = row.split("\t")
        (tmp_path / "val" / wnid).mkdir()
        (tmp_path / "val" / "images" / file).rename(tmp_path / "val" / wnid / file)
    tree = image_tree("tinyimagenet", tmp_path, "test")
    assert [files[0].name for files in tree.files.values()] == [
        f"val_{199 - label}.JPEG" for label in range(200)
    ]
    assert list(tree.files) == wnids


def test_a_damaged_tinyimagenet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"needs wnids.txt in {tmp_path} or {tmp_path}/tiny-"):
        image_tree("tinyimagenet", tmp_path, "train")
    wnids = tiny(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").rename(tmp_path / "annotations")
    with pytest.raises(DataError, match=r"val_annotations\.txt, which says the class of every"):
        image_tree("tinyimagenet", tmp_path, "test")
    (tmp_path / "train" / wnids[5]).rename(tmp_path / "train" / "other")
    with pytest.raises(DataError, match=f"needs the folder {tmp_path}/train/{wnids[5]}, it does"):
        image_tree("tinyimagenet", tmp_path, "train")
    (tmp_path / "wnids.txt").write_text("\n".join(wnids[:-1]))
    with pytest.raises(DataError, match="must name 200 different classes, it names 199"):
        image_tree("tinyimagenet", tmp_path, "train")


def test_classes_of_ones_own_choice(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(f"# fish and more\n{IMAGENETTE[3]}  # a saw\n\n{IMAGENETTE[0]}\n")
    for label, wnid in enumerate(IMAGENETTE):
        write_images(tmp_path / "train" / wnid, [label], "JPEG")
    opened = open_dataset(f"custom:{file}", tmp_path, size=8)
    assert opened.class_names == (IMAGENETTE[3], IMAGENETTE[0])
    assert abs(reds(opened.take(0, [0]))[0] - 3) <= 2
    assert dataset_info(f"custom:{file}").num_classes == 2
    assert open_dataset(f"custom:{file}", tmp_path).image_shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n01440764\nn02102040\nn01440764\n", "line 3: n01440764 is in line 1 already"),
        ("n01440764\n#\nn1440764\n", "line 3: 'n1440764' is none of ImageNet-1K's 1000 classes"),
        ("n01440764\n", "must name two or more classes, it names 1"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_wrong_list_of_classes_is_refused(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=f"{file}.*{message}"):
        open_dataset(f"custom:{file}", tmp_path)


def test_a_chosen_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("n01440764\nn02102040\n")
    write_images(tmp_path / "train" / "n01440764", [1], "JPEG")
    with pytest.raises(DataError, match=f"needs the folder {tmp_path}/train/n02102040"):
        open_dataset(f"custom:{tmp_path / 'mine.txt'}", tmp_path)


def test_the_index_of_imagenet_1k_takes_less_than_200_mb(tmp_path: Path) -> None:
    wnids = subset_lists()["imagenette"]
    for wnid in wnids:
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for number in range(500):
            (tmp_path / "train" / wnid / f"{wnid}_{number:05}.JPEG").touch()
    tracemalloc.start()
    tree = image_tree("imagenette", tmp_path, "train")
    per_image = tracemalloc.get_traced_memory()[0] / sum(map(len, tree.files.values()))
    tracemalloc.stop()
    assert per_image * 1_281_167 < 200e6


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
    with pytest.raises(DataError, match="imagenette is read from a folder: pass --data"):
        open_dataset("imagenette")
