"""Which back end serves image files; FFCV and packing are replaced by stand-ins."""

import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from m3d_fast.loaders import DataError, backends, open_dataset
from m3d_fast.loaders.backends import open_image_files
from m3d_fast.loaders.ffcv.packed_file import PackedFile, Sidecar, default_file, index_checksum
from m3d_fast.loaders.image_files.worker_images import FolderImages

SIZE = 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images, and one each to test."""
    for split, count in (("train", 2), ("test", 1)):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (9, 9), (number, 0, 0))
                image.save(tmp_path / "data" / split / name / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def ffcv(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """FFCV is installed; returns the files that are opened."""
    opened: list[Path] = []

    def images(packed: PackedFile, *, workers: int | None) -> SimpleNamespace:
        opened.append(packed.path)
        return SimpleNamespace(path=packed.path, workers=workers)

    module = SimpleNamespace(FfcvImages=images, load_ffcv=lambda: None)
    monkeypatch.setitem(sys.modules, "m3d_fast.loaders.ffcv.images", module)
    return opened


def write_packed(file: Path, root: Path, **other: object) -> Path:
    """A file with its sidecar, of four bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"data")
    sidecar = Sidecar(
        dataset="folder",
        split="train",
        size=SIZE,
        store="raw",
        class_names=("ant", "bee"),
        class_sizes=(2, 2),
        skipped=(),
        bytes=4,
        index_ranges=((0, 1),),
        index_checksum=index_checksum(file, ((0, 1),)),
        crc32=np.zeros(4, np.uint32),
        root=str(root),
        versions={},
    )
    replace(sidecar, **other).write(file)
    return file


def open_folder(root: Path, split: str = "train", loader: str = "auto", **other: object) -> object:
    given = {"name": "folder", "size": SIZE, "workers": None} | other
    return open_image_files(root=root, split=split, loader=loader, **given)


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Packing takes no time; returns the command lines."""
    commands: list[list[str]] = []

    def start(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        arguments = dict(zip(command[3::2], command[4::2], strict=True))
        write_packed(Path(arguments["--out"]), Path(arguments["--data-root"]))
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(backends.subprocess, "Popen", start)
    return commands


def test_small_sets_are_decoded_without_packing_or_processes(
    root: Path, packing: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_folder(root)
    assert isinstance(images, FolderImages)
    assert (images.workers, images.class_sizes) == (0, (2, 2))
    assert open_folder(root, workers=1).workers == 1
    monkeypatch.setattr(backends, "_SMALL", 4)
    assert not isinstance(open_folder(root), FolderImages)
    assert len(packing) == 1


def test_a_few_images_are_taken_without_reading_or_packing_the_others(
    root: Path, packing: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_SMALL", 1)
    read, decode = [], FolderImages.read

    def count(self: FolderImages, row_batches):
        return decode(self, (read.append(rows.tolist()) or rows for rows in row_batches))

    monkeypatch.setattr(FolderImages, "read", count)
    real = open_dataset("folder", root, size=SIZE, sparse=True, workers=0)
    assert (packing, read) == ([], []), "nothing is packed or read on opening"
    taken = list(real.take_each([1, 0], [[1], [0]]))
    assert read == [[3], [0]]
    everything = next(iter(real.ordered(4)))[0]
    assert torch.equal(torch.cat(taken), everything[[3, 0]])


def test_training_images_are_packed_once(root: Path, packing: list, caplog) -> None:
    with caplog.at_level(logging.INFO, "m3d_fast"):
        first = open_folder(root, loader="ffcv", workers=3)
    file = default_file("folder", root, "train", SIZE, "raw")
    assert (first.path, first.workers) == (file, 3)
    (command,) = packing
    assert command[:3] == [sys.executable, "-m", "m3d_fast.loaders.pack"]
    assert dict(zip(command[3::2], command[4::2], strict=True)) == {
        "--dataset": "folder",
        "--data-root": str(root),
        "--size": "8",
        "--store": "raw",
        "--out": str(file),
    }
    (sentence,) = caplog.messages
    assert f"folder is not packed yet: packing it into {file} first" in sentence
    assert open_folder(root).path == file
    assert len(packing) == 1


def test_test_images_are_read_from_a_packed_file_if_there_is_one(root: Path, packing) -> None:
    assert isinstance(open_folder(root, "test", "ffcv"), FolderImages)
    file = default_file("folder", root, "test", SIZE, "jpeg:95")
    write_packed(file, root, split="test", store="jpeg:95")
    assert open_folder(root, "test").path == file
    assert isinstance(open_folder(root, "test", "folder"), FolderImages)
    assert packing == []


def test_exact_pixels_are_preferred(root: Path) -> None:
    for store in ("original", "jpeg:95", "raw"):
        file = default_file("folder", root, "train", SIZE, store)
        write_packed(file, root, store=store)
        assert open_folder(root).path == file


def test_a_packed_file_given_leads_to_its_other_split(root: Path, tmp_path: Path) -> None:
    file = write_packed(tmp_path / "fast disk" / "mine.beton", root)
    assert open_folder(file).path == file
    from_folder = open_folder(file, "test")
    assert isinstance(from_folder, FolderImages)
    assert from_folder.class_sizes == (1, 1)
    beside_root = default_file("folder", root, "test", SIZE, "raw")
    write_packed(beside_root, root, split="test")
    assert open_folder(file, "test").path == beside_root
    beside_file = write_packed(file.with_name(beside_root.name), root, split="test")
    assert open_folder(file, "test").path == beside_file
    beside_file.unlink()
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"holds the train split, and the folder {root} it was pa"):
        open_folder(file, "test")


@pytest.mark.parametrize(
    ("other", "asked", "message"),
    [
        ({"dataset": "imagenet10"}, {}, "holds imagenet10, not folder"),
        (
            {"size": 16},
            {},
            "holds images of 16 px, 8 px were requested: take --size 16 or pack again",
        ),
        ({"split": "test"}, {}, "holds the test split, not train"),
        (
            {"dataset": "imagenette"},
            {"name": "imagenette"},
            "holds imagenette of 2 classes, which are not those of imagenette",
        ),
    ],
)
def test_a_packed_file_of_other_data_is_refused(
    other: dict, asked: dict, message: str, root: Path
) -> None:
    name = asked.get("name", "folder")
    write_packed(default_file(name, root, "train", SIZE, "raw"), root, **other)
    with pytest.raises(DataError, match=message):
        open_folder(root, **asked)


def test_a_packed_file_is_no_image_files(root: Path, tmp_path: Path) -> None:
    file = write_packed(tmp_path / "mine.beton", root)
    with pytest.raises(DataError, match=r"--loader folder decodes image files, .*mine.beton is p"):
        open_folder(file, loader="folder")


def test_without_ffcv_one_sentence_says_which_path_runs(
    root: Path, packing: list, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'ffcv'")

    monkeypatch.setattr(sys.modules["m3d_fast.loaders.ffcv.images"], "load_ffcv", absent)
    monkeypatch.setattr(backends, "_SMALL", 1)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        images = open_folder(root, workers=1)
    assert isinstance(images, FolderImages)
    assert caplog.messages == [
        "ffcv is not installed or broken (No module named 'ffcv'; make setup installs it): "
        "image files are decoded by worker processes, which is slower"
    ]
    with pytest.raises(DataError, match=f"{root} is to be read through FFCV, but ffcv is not inst"):
        open_folder(root, loader="ffcv")
    file = write_packed(default_file("folder", root, "train", SIZE, "raw"), root)
    assert isinstance(open_folder(root), FolderImages)
    with pytest.raises(DataError, match=f"{file} is to be read through FFCV, but ffcv is not inst"):
        open_folder(file)
    assert packing == []


@pytest.mark.parametrize("status", [2, 1, -9])
def test_failed_packing_is_an_error(status: int, root: Path, monkeypatch) -> None:
    failing = SimpleNamespace(wait=lambda: status)
    monkeypatch.setattr(backends.subprocess, "Popen", lambda *_, **__: failing)
    with pytest.raises(DataError, match=rf"packing folder failed \(status {status}, its message"):
        open_folder(root, loader="ffcv")


def test_interrupted_packing_is_an_interruption(root: Path, monkeypatch) -> None:
    stopped = SimpleNamespace(wait=lambda: 130)
    monkeypatch.setattr(backends.subprocess, "Popen", lambda *_, **__: stopped)
    with pytest.raises(KeyboardInterrupt, match="interrupted while packing"):
        open_folder(root, loader="ffcv")


def test_of_several_processes_one_packs(root: Path, packing: list, caplog) -> None:
    file = default_file("folder", root, "train", SIZE, "raw")
    file.parent.mkdir()
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(open_folder(root, loader="ffcv")))
    with caplog.at_level(logging.INFO, "m3d_fast"):
        waiting.start()
        end = time.monotonic() + 10
        while not caplog.messages:
            assert time.monotonic() < end
            time.sleep(0.01)
        write_packed(file, root)
        os.close(lock)
        waiting.join(10)
    assert caplog.messages == [f"another process is packing {file}: waiting for it"]
    assert found[0].path == file
    assert packing == []


def test_where_nothing_can_be_written_it_says_how_to_pack(root: Path, tmp_path: Path) -> None:
    blocker: Callable[..., Path] = lambda *_: tmp_path / "file" / "mine.beton"  # noqa: E731
    (tmp_path / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "default_file", blocker)
        with pytest.raises(DataError, match=r"cannot be written .*--out FILE and pass that file"):
            open_folder(root, loader="ffcv")
