import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3d_fast.loaders import DataError
from m3d_fast.loaders.ffcv.packed_file import (
    Sidecar,
    default_file,
    file_identity,
    index_checksum,
    open_packed,
    sidecar_path,
)

CONTENT = bytes(range(200)) * 5  # an index of 100 bytes, pixels, an index of 50 bytes
RANGES = ((0, 100), (950, 1000))


@pytest.fixture
def sidecar(tmp_path: Path) -> Sidecar:
    path = tmp_path / "set.beton"
    path.write_bytes(CONTENT)
    return Sidecar(
        dataset="imagenet10",
        split="train",
        size=32,
        store="raw",
        class_names=("a", "b"),
        class_sizes=(2, 1),
        skipped=(("a/bad.JPEG", "truncated"),),
        bytes=len(CONTENT),
        index_ranges=RANGES,
        index_checksum=index_checksum(path, RANGES),
        crc32=np.array([0, 7, 2**32 - 1], dtype=np.uint32),
        root="somewhere",
        versions={"ffcv": "1.0.2"},
    )


@pytest.fixture
def path(sidecar: Sidecar, tmp_path: Path) -> Path:
    sidecar.write(tmp_path / "set.beton")
    return tmp_path / "set.beton"


def test_what_was_written_is_read(path: Path, sidecar: Sidecar) -> None:
    opened = open_packed(path)
    assert opened.path == path
    assert opened.identity == file_identity(path)
    read = opened.sidecar
    assert read.crc32.dtype == np.uint32
    assert read.crc32.tolist() == [0, 7, 2**32 - 1]
    assert replace(read, crc32=sidecar.crc32).__dict__ == sidecar.__dict__
    assert sorted(file.name for file in path.parent.iterdir()) == ["set.beton", "set.beton.json"]


def test_the_index_checksum_is_of_its_ranges(path: Path) -> None:
    expected = hashlib.sha256(CONTENT[:100] + CONTENT[950:]).hexdigest()
    assert open_packed(path).sidecar.index_checksum == expected


def test_a_key_of_earlier_versions_is_ignored(path: Path) -> None:
    content = json.loads(sidecar_path(path).read_text())
    del content["checksum"]
    content["fingerprint"] = "0" * 64
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    sidecar_path(path).write_text(json.dumps(content))
    assert open_packed(path).sidecar.dataset == "imagenet10"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no packed file .*none\.beton: name another"):
        open_packed(tmp_path / "none.beton")


def test_no_sidecar(path: Path) -> None:
    sidecar_path(path).unlink()
    with pytest.raises(DataError, match=r"is missing: packing was interrupted.*pack again"):
        open_packed(path)


@pytest.mark.parametrize("position", range(0, 600, 83))
def test_a_changed_byte_of_the_sidecar(path: Path, position: int) -> None:
    content = bytearray(sidecar_path(path).read_bytes())
    content[position] ^= 1
    sidecar_path(path).write_bytes(content)
    with pytest.raises(DataError, match=r"set\.beton\.json .*pack again"):
        open_packed(path)


def test_half_a_sidecar(path: Path) -> None:
    content = sidecar_path(path).read_bytes()
    sidecar_path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is damaged"):
        open_packed(path)


@pytest.mark.parametrize("content", [[], {}, {"format": "of tomorrow"}])
def test_another_json(path: Path, content: object) -> None:
    sidecar_path(path).write_text(json.dumps(content))
    with pytest.raises(DataError, match="must be 'm3d_fast packed images, 1', it is"):
        open_packed(path)


def test_a_file_cut_by_one_byte(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="is cut: 1000 bytes were written, 999 are there"):
        open_packed(path)


@pytest.mark.parametrize("position", [0, 99, 950, 999])
def test_a_changed_byte_of_the_index(path: Path, position: int) -> None:
    content = bytearray(CONTENT)
    content[position] ^= 128
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged or not the file"):
        open_packed(path)


def test_a_longer_file(path: Path) -> None:
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(DataError, match="is damaged or not the file"):
        open_packed(path)


def test_packed_files_lie_with_the_data(tmp_path: Path) -> None:
    file = default_file("imagenet100", tmp_path, "train", 224, "raw")
    assert file == tmp_path / "m3d_fast" / "imagenet100-train-224-raw.beton"
    file = default_file("custom:/some/where/pets.txt", tmp_path, "test", 64, "jpeg:95")
    assert file == tmp_path / "m3d_fast" / "custom-pets-test-64-jpeg95.beton"


def test_packed_files_of_a_read_only_folder_lie_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    one, two = (default_file("folder", tmp_path / name, "train", 32, "raw") for name in "ab")
    assert one.parent == two.parent == tmp_path / "cache" / "packed"
    assert one != two
    file = tmp_path / "a" / "m3d_fast" / "folder-train-32-raw.beton"
    file.parent.mkdir(parents=True)
    file.touch()
    assert default_file("folder", tmp_path / "a", "train", 32, "raw") == file
