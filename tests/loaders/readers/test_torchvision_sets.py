import hashlib
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

from m3d_fast.loaders import DataError, open_dataset

PER_CLASS = 2
SPLITS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def old_pickle(entry: dict[str, object]) -> bytes:
    """The archives' pickles: dtypes with the numbers 0 and 1 for False and True."""
    content = pickle.dumps(entry, protocol=2)
    return content.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def write_batches(name: str, home: Path) -> dict[str, dict[str, np.ndarray]]:
    """Write CIFAR's pickles with a few images of every class; returns them by file name."""
    source = SPLITS[name]
    classes = 10 if name == "cifar10" else 100
    folder = home / source.base_folder
    folder.mkdir(parents=True)
    written = {}
    for number, (file, _) in enumerate([*source.train_list, *source.test_list]):
        generator = np.random.default_rng(number)
        labels = generator.permutation(np.repeat(np.arange(classes), PER_CLASS))
        pixels = generator.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
        key = "labels" if name == "cifar10" else "fine_labels"
        (folder / file).write_bytes(old_pickle({"data": pixels, key: labels.tolist()}))
        written[file] = {"pixels": pixels, "labels": labels}
    names = [f"class {index}" for index in range(classes)]
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: names}))
    return written


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, dict[str, dict[str, np.ndarray]]]:
    """Tiny batches whose checksums torchvision takes for the real ones."""
    name = request.param
    source = SPLITS[name]
    home = tmp_path / "data"
    written = write_batches(name, home)
    folder = home / source.base_folder
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5(folder / file)] for file, _ in getattr(source, attribute)]
        monkeypatch.setattr(source, attribute, listed)
    meta = source.meta | {"md5": md5(folder / source.meta["filename"])}
    monkeypatch.setattr(source, "meta", meta)
    return name, home, written


Cifar = tuple[str, Path, dict[str, dict[str, np.ndarray]]]


def expected_split(written: dict[str, dict[str, np.ndarray]], files: list[str]) -> tuple:
    pixels = np.concatenate([written[file]["pixels"] for file in files])
    labels = np.concatenate([written[file]["labels"] for file in files])
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), labels


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifars_pixels_and_labels_arrive(split: str, cifar: Cifar) -> None:
    name, home, written = cifar
    source = SPLITS[name]
    listed = source.train_list if split == "train" else source.test_list
    pixels, labels = expected_split(written, [file for file, _ in listed])
    opened = open_dataset(name, home, split)
    assert opened.num_classes == len(set(labels.tolist()))
    assert opened.class_names[7] == "class 7"
    for class_index in range(opened.num_classes):
        mine = torch.from_numpy(np.flatnonzero(labels == class_index))
        taken = opened.take(class_index, range(opened.class_sizes[class_index]))
        assert torch.equal(taken, pixels[mine])


def test_cifars_inner_folder_may_be_the_root(cifar: Cifar) -> None:
    name, home, _ = cifar
    inner = open_dataset(name, home / SPLITS[name].base_folder)
    assert torch.equal(inner.batch([0, 9], 3), open_dataset(name, home).batch([0, 9], 3))


def pack(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the unpacked files with their archive."""
    source = SPLITS[name]
    folder = home / source.base_folder
    archive = home / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, source.base_folder)
    monkeypatch.setattr(source, "tgz_md5", md5(archive))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return archive


def test_an_archive_at_hand_is_unpacked(
    cifar: Cifar, monkeypatch: pytest.MonkeyPatch, tried_addresses: list[str]
) -> None:
    name, home, _ = cifar
    before = open_dataset(name, home).batch([1], 5)
    archive = pack(name, home, monkeypatch)
    assert torch.equal(open_dataset(name, home).batch([1], 5), before)
    assert sorted(path.name for path in home.iterdir()) == sorted(
        [SPLITS[name].base_folder, archive.name]
    )
    assert tried_addresses == []


def test_a_downloaded_archive_is_unpacked_and_removed(
    cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, home, _ = cifar
    before = open_dataset(name, home).batch([1], 5)
    archive = pack(name, home, monkeypatch)
    monkeypatch.setattr(SPLITS[name], "url", archive.as_uri())
    assert torch.equal(open_dataset(name, tmp_path / "new").batch([1], 5), before)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [SPLITS[name].base_folder]


def test_a_damaged_archive_is_named(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    name, home, _ = cifar
    archive = pack(name, home, monkeypatch)
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{archive} is damaged, delete it"):
        open_dataset(name, home)
    assert list(home.iterdir()) == [archive]


def test_a_damaged_batch_is_named(cifar: Cifar) -> None:
    name, home, _ = cifar
    path = home / SPLITS[name].base_folder / SPLITS[name].test_list[0][0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path} is damaged \(wrong checksum\): delete it"):
        open_dataset(name, home)


def test_cifar_that_is_nowhere_says_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    message = (
        rf"cifar10 needs {root}/cifar-10-batches-py/data_batch_1, which is missing, and "
        r"downloading it failed \(https://.*no network in tests.*\): pass --data-root with a "
        r"folder that holds the archive cifar-10-python.tar.gz"
    )
    with pytest.raises(DataError, match=message):
        open_dataset("cifar10", root)
    assert not root.exists()


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, np.ndarray]:
    """A tiny test_32x32.mat whose checksum torchvision takes for the real one."""
    home = tmp_path / "data"
    home.mkdir()
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(1, 11), PER_CLASS))
    pixels = generator.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
    path = home / "test_32x32.mat"
    scipy.io.savemat(path, {"X": pixels, "y": labels[:, None].astype(np.uint8)})
    listed = datasets.SVHN.split_list | {"test": [path.as_uri(), path.name, md5(path)]}
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return home, pixels, labels


def test_svhns_pixels_and_labels_arrive(svhn: tuple[Path, np.ndarray, np.ndarray]) -> None:
    home, pixels, labels = svhn
    opened = open_dataset("svhn", home, "test")
    assert opened.class_names == tuple("0123456789")
    for digit in range(10):
        # the file labels the digit 0 as 10
        mine = pixels[..., labels == (digit or 10)].transpose(3, 2, 0, 1)
        assert torch.equal(opened.take(digit, range(PER_CLASS)), torch.from_numpy(mine.copy()))


def test_svhn_is_downloaded_into_the_cache(
    svhn: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    here = open_dataset("svhn", svhn[0], "test")
    assert torch.equal(open_dataset("svhn", split="test").batch([0], 4), here.batch([0], 4))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["test_32x32.mat"]


def test_damaged_svhn_is_named(svhn: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path = svhn[0] / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path} is damaged \(wrong checksum\): delete it"):
        open_dataset("svhn", svhn[0], "test")


def test_svhn_that_is_nowhere_says_what_to_do(tmp_path: Path) -> None:
    message = re.escape(f"svhn needs {tmp_path}/train_32x32.mat, which is missing, and")
    with pytest.raises(DataError, match=message):
        open_dataset("svhn", tmp_path)
    assert list(tmp_path.iterdir()) == []
