import gzip
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from m3d_fast.loaders import DataError, RealImages, open_dataset

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
Write = Callable[..., tuple[np.ndarray, np.ndarray]]


def assert_holds(opened: RealImages, images: np.ndarray, labels: np.ndarray) -> None:
    for class_index in range(10):
        expected = torch.from_numpy(images[labels == class_index])[:, None]
        size = opened.class_sizes[class_index]
        assert torch.equal(opened.take(class_index, range(size)), expected)


@pytest.mark.parametrize("name", ["fashionmnist", "mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("compress", [True, False])
def test_every_pixel_and_label_arrives(
    name: str, split: str, compress: bool, tmp_path: Path, write_mnist: Write
) -> None:
    images, labels = write_mnist(tmp_path, split, compress=compress)
    opened = open_dataset(name, tmp_path, split)
    assert_holds(opened, images, labels)
    assert opened.image_shape == (1, 28, 28)


def test_class_names_are_in_label_order(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path)
    fashion = open_dataset("fashionmnist", tmp_path)
    assert fashion.class_names[0] == "T-shirt/top"
    assert list(fashion.class_names) == datasets.FashionMNIST.classes
    assert open_dataset("mnist", tmp_path).class_names == tuple("0123456789")


@pytest.mark.parametrize(("name", "inner"), [("fashionmnist", "FashionMNIST"), ("mnist", "MNIST")])
def test_torchvisions_layout_is_understood(
    name: str, inner: str, tmp_path: Path, write_mnist: Write
) -> None:
    written = write_mnist(tmp_path / inner / "raw")
    assert_holds(open_dataset(name, tmp_path), *written)


def test_without_root_the_debian_folder_comes_before_the_cache(
    tmp_path: Path, write_mnist: Write, tried_addresses: list[str]
) -> None:
    cached = write_mnist(tmp_path / "cache" / "FashionMNIST" / "raw", per_class=2)
    assert_holds(open_dataset("fashionmnist"), *cached)
    packaged = write_mnist(tmp_path / "debian", per_class=4)
    assert_holds(open_dataset("fashionmnist"), *packaged)
    assert tried_addresses == []


def test_a_given_root_never_falls_back_to_the_debian_folder(
    tmp_path: Path, write_mnist: Write
) -> None:
    write_mnist(tmp_path / "debian")
    root = tmp_path / "mine"
    expected = (
        rf"the train files of fashionmnist are not in {root} and {root}/FashionMNIST/raw, and "
        r"downloading them failed \(http.*no network in tests.*\): install the Debian package "
        r"dataset-fashion-mnist, or pass --data-root"
    )
    with pytest.raises(DataError, match=expected):
        open_dataset("fashionmnist", root)
    assert not root.exists()


def test_without_root_the_message_says_where_it_looked(tmp_path: Path) -> None:
    looked = f"are not in {tmp_path}/debian and {tmp_path}/cache/FashionMNIST/raw, and"
    with pytest.raises(DataError, match=looked):
        open_dataset("fashionmnist")
    with pytest.raises(DataError, match=f"of mnist are not in {tmp_path}/cache/MNIST/raw, and"):
        open_dataset("mnist")
    assert not (tmp_path / "cache").exists()


def test_half_a_split_is_not_found(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path)
    (tmp_path / LABELS).unlink()
    with pytest.raises(DataError, match="the train files of mnist are not in"):
        open_dataset("mnist", tmp_path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_mnist: Write) -> Path:
    """A folder that Fashion-MNIST is downloaded from, after one address that does not answer."""
    folder = tmp_path / "mirror"
    write_mnist(folder)
    checksums = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    ]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", checksums)
    monkeypatch.setattr(
        datasets.FashionMNIST, "mirrors", ["https://example.invalid/", f"{folder.as_uri()}/"]
    )
    return folder


@pytest.mark.parametrize(("root", "place"), [(None, "cache"), ("mine", "mine")])
def test_missing_files_are_downloaded_once(
    root: str | None,
    place: str,
    tmp_path: Path,
    mirror: Path,
    write_mnist: Write,
    tried_addresses: list[str],
) -> None:
    chosen = None if root is None else tmp_path / root
    expected = write_mnist(mirror)
    assert_holds(open_dataset("fashionmnist", chosen), *expected)
    arrived = tmp_path / place / "FashionMNIST" / "raw"
    assert sorted(path.name for path in arrived.iterdir()) == [IMAGES, LABELS]
    tried_addresses.clear()
    assert_holds(open_dataset("fashionmnist", chosen), *expected)
    assert tried_addresses == []


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path: Path, mirror: Path) -> None:
    (mirror / IMAGES).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"checksum is [0-9a-f]{32}, expected [0-9a-f]{32}"):
        open_dataset("fashionmnist", tmp_path / "mine")
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == []


def cut_gzip(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_gzip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def cut_data(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-1])


def lengthen_data(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content) + b"x")


def cut_header(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:6])


def change_magic(content: bytes) -> bytes:
    return gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(content)[4:])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (IMAGES, cut_gzip, r"cannot be read \(Compressed file ended"),
        (IMAGES, flip_gzip, r"cannot be read \(.+\); fetch it again"),
        (LABELS, cut_data, r"should hold 30 bytes of data \(30,\), it holds 29"),
        (IMAGES, cut_data, r"should hold 23520 bytes of data \(30, 28, 28\), it holds 23519"),
        (IMAGES, lengthen_data, "it holds 23521; fetch it again"),
        (IMAGES, cut_header, "ends inside its 16-byte header"),
        (IMAGES, change_magic, "should begin with 00000803, it begins with 00000d03"),
        (LABELS, lambda _: b"", "should begin with 00000801, it begins with nothing"),
    ],
)
def test_damaged_files_are_named(
    file: str,
    damage: Callable[[bytes], bytes],
    message: str,
    tmp_path: Path,
    write_mnist: Write,
) -> None:
    write_mnist(tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{re.escape(str(path))} .*{message}"):
        open_dataset("mnist", tmp_path)


def test_labels_out_of_range_are_named(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path, labels=np.array([*range(10), 10, 3]))
    message = rf"labels must be 0 to 9, but {tmp_path / LABELS} holds the label 10 \(entry 10\)"
    with pytest.raises(DataError, match=message):
        open_dataset("mnist", tmp_path)


def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, write_mnist: Write, idx_bytes: Callable[[np.ndarray], bytes]
) -> None:
    write_mnist(tmp_path)
    (tmp_path / LABELS).write_bytes(idx_bytes(np.arange(10)))
    message = f"{IMAGES} holds 30 images but {tmp_path / LABELS} 10 labels"
    with pytest.raises(DataError, match=message):
        open_dataset("mnist", tmp_path)


def test_images_of_another_size_are_refused(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path, side=20)
    with pytest.raises(DataError, match=f"images of mnist are 28x28 pixels, .*{IMAGES} are 20x20"):
        open_dataset("mnist", tmp_path)


def test_an_empty_class_is_named(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path, labels=np.array([0, 1, 2, 3, 4, 5, 6, 7, 9]))
    with pytest.raises(DataError, match=f"class '8' of {tmp_path} has no image"):
        open_dataset("mnist", tmp_path)
