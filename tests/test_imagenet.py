"""From a tree of image files to a table of accuracies: pack, load, condense, evaluate."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip(
    "m3d_fast.loaders.ffcv.library", reason="packing needs FFCV", exc_type=ImportError
)
pytest.importorskip("skimage")

from benchmarks import imagenet_like
from m3d_fast.loaders import DataError, open_dataset
from m3d_fast.loaders.subsets import subset_classes
from tests.helpers.commands import run, run_process, start

CLASSES = subset_classes("imagenette")[3:0:-1]
SIZE = 16


def condense_arguments(root: Path, out: Path, *more: str) -> list[str]:
    """Arguments of a condensation by ResNetAP-10 of some seconds."""
    flags = {
        "--dataset": f"custom:{root / 'mine.txt'}",
        "--data-root": str(root),
        "--size": str(SIZE),
        "--iterations": "4",
        "--checkpoint-every": "1",
        "--real-batch": "8",
        "--lr-img": "1",
        "--device": "cpu",
        "--out": str(out),
    }
    return [*(word for pair in flags.items() for word in pair), *more]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """210 training images of three classes, of every kind found in ImageNet, and 30 to test."""
    root = tmp_path_factory.mktemp("imagenet")
    (root / "mine.txt").write_text("\n".join(CLASSES))
    paths = imagenet_like.write_tree(root, CLASSES, 70, shape=(60, 45))
    imagenet_like.write_tree(root, CLASSES, 10, split="val", shape=(45, 60))
    imagenet_like.make_grey(paths[1])
    imagenet_like.make_cmyk(paths[75])
    imagenet_like.make_png(paths[150])
    return root


@pytest.fixture(scope="module")
def packed_file(tree: Path) -> Path:
    return tree / "m3d_fast" / f"custom-mine-train-{SIZE}-raw.beton"


@pytest.fixture(scope="module")
def condensed(tree: Path, packed_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with packing."""
    out = tmp_path_factory.mktemp("runs") / "ffcv"
    # what packing prints comes from another process
    done = run_process("condense", *condense_arguments(tree, out, "--loader", "ffcv"))
    assert done.returncode == 0, done.stderr
    assert f"custom:{tree / 'mine.txt'} is not packed yet: packing it into" in done.stderr
    assert f"packed 210 images into {packed_file}" in done.stderr
    assert "kept in RAM, read once by FFCV" in done.stderr
    assert packed_file.is_file()
    return out


def test_condensed_and_evaluated_from_a_packed_file(
    condensed: Path, packed_file: Path, tmp_path: Path
) -> None:
    settings = json.loads((condensed / "config.json").read_text())["settings"]
    assert settings["network"] == "resnetap10"
    out = shutil.copytree(condensed, tmp_path / "run")
    # the file alone says where the test images are
    flags = ["--data-root", str(packed_file), "--epochs", "1", "--repeats", "1", "--device", "cpu"]
    done = run("evaluate", str(out), *flags, "--baselines", "random")
    assert done.returncode == 0, done.stderr
    assert "packing" not in done.stderr
    content = json.loads((out / "evaluation.json").read_text())
    assert content["test_images"] == 30
    assert [result["method"] for result in content["results"]] == ["random", "initial", "m3d"]
    for result in content["results"]:
        assert result["mean"] * 30 == pytest.approx(round(result["mean"] * 30))


def test_image_files_condense_to_the_same_bytes(
    tree: Path, condensed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "folder"
    flags = ["--loader", "folder", "--cache", "none", "--workers", "2"]
    done = run("condense", *condense_arguments(tree, out, *flags))
    assert done.returncode == 0, done.stderr
    assert "3 classes are streamed by image files, none is kept in memory" in done.stderr
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (condensed / name).read_bytes()


def test_a_killed_run_over_ffcv_ends_with_the_same_bytes(
    tree: Path, condensed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(
        "condense", *condense_arguments(tree, out, "--loader", "ffcv", "--cache", "none")
    )
    end = time.monotonic() + 240
    while not (out / "checkpoint.safetensors").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (out / "synthetic.safetensors").exists()
    # how images are read may change on resume
    done = run("condense", "--out", str(out), "--resume", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "resumed after iteration" in done.stderr
    assert "streamed by FFCV" in done.stderr
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (condensed / name).read_bytes()


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_one_sequence_whatever_reads_the_images(tree: Path, condensed: Path, cache: str) -> None:
    def draw(loader: str, workers: int) -> list[torch.Tensor]:
        real = open_dataset(
            f"custom:{tree / 'mine.txt'}",
            tree,
            size=SIZE,
            seed=7,
            cache=cache,
            loader=loader,
            workers=workers,
        )
        real.load_state_dict({"positions": np.array([60, 200, 3])})
        with real.batches([[2, 0], [1]], 25) as batches:
            found = [batch.clone() for batch in itertools.islice(batches, 8)]
        return [*found, real.take(1, [69, 0]), *(images for images, _ in real.ordered(64))]

    expected = draw("ffcv", 1)
    assert [len(batch) for batch in expected[:3]] == [2, 1, 2]
    for loader, workers in (("ffcv", 2), ("folder", 1), ("folder", 2), ("folder", 0)):
        for ours, theirs in zip(draw(loader, workers), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_a_truncated_image_stops_packing_by_its_name(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "imagenet"
    shutil.copytree(tree, root, ignore=shutil.ignore_patterns("m3d_fast"))
    bad = sorted((root / "train" / CLASSES[1]).iterdir())[40]
    imagenet_like.truncate(bad)
    with pytest.raises(DataError, match=r"packing custom:.* failed .* above.*--loader folder"):
        open_dataset(f"custom:{root / 'mine.txt'}", root, size=SIZE, loader="ffcv")
    assert f"the image {bad} cannot be decoded" in capfd.readouterr().err
    with pytest.raises(DataError, match=f"the image {bad} cannot be decoded"):
        open_dataset(f"custom:{root / 'mine.txt'}", root, size=SIZE, loader="folder")
    assert not list(root.rglob("*.beton"))
    assert not list(root.rglob("*.part"))


def test_ctrl_c_while_packing_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    shutil.copytree(tree, root, ignore=shutil.ignore_patterns("m3d_fast"))
    # makes packing wait: a pipe without a writer among the images
    slow = root / "train" / CLASSES[2] / "zzz.JPEG"
    os.mkfifo(slow)
    out = tmp_path / "run"
    command = start("condense", *condense_arguments(root, out, "--loader", "ffcv"))
    end = time.monotonic() + 240
    while not list(root.rglob("*.part")):
        assert time.monotonic() < end
        time.sleep(0.01)
    children = find_descendants(command.pid)
    # as a terminal does: every process of the group
    for pid in (command.pid, *children):
        os.kill(pid, signal.SIGINT)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 130, err
    assert "Traceback" not in err
    assert not list(root.rglob("*.beton"))
    assert not list(root.rglob("*.part"))
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not out.exists()


def find_descendants(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout.split()
    return [below for child in map(int, listed) for below in (child, *find_descendants(child))]
