"""A thousand classes from image files to a condensed set, as in the full-size run."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3d_fast.loaders.subsets import subset_classes
from m3d_fast.synthetic import SyntheticSet
from tests.helpers.commands import run_ranks

PER_CLASS = 10
IPC = 1  # the time of an iteration is that of 9 IPC decoded images a class
SIDE = 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each class in one grey value, that of the class, all but for some noise."""
    root = tmp_path_factory.mktemp("imagenet")
    noise = np.random.default_rng(0)
    for label, wnid in enumerate(subset_classes("imagenet1k")):
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = grey(label) + noise.integers(-8, 9, (20, 24, 1)).repeat(3, 2)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / f"{wnid}_{number}.JPEG", quality=90)
    return root


def grey(label: int) -> int:
    return 10 + label * 230 // 1000


def test_imagenet_1k_at_factor_3(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = [
        "--dataset",
        "imagenet1k",
        "--ipc",
        str(IPC),
        "--factor",
        "3",
        "--data-root",
        str(tree),
    ]
    tiny = ["--size", str(SIDE), "--network", "convnet3", "--real-batch", "4", "--iterations", "1"]
    plain = ["--loader", "folder", "--workers", "1", "--device", "cpu", "--no-compile"]
    plain += ["--log-every", "1", "--lr-img", "0.01", "--out", str(out)]
    done = run_ranks(2, "m3d_fast.condense", *given, *tiny, *plain)
    assert done.returncode == 0, done.stderr

    said = done.stderr.splitlines()
    (space,) = (i for i, line in enumerate(said) if "of memory per device" in line)
    estimate = re.fullmatch(
        r"estimate: (\d+\.\d\d) GB of memory per device, (\d+\.\d\d) GB of disk "
        r"\((\d+\.\d\d) GB free\)",
        said[space],
    )
    assert estimate is not None
    memory, disk, _ = map(float, estimate.groups())
    numbers = 1000 * IPC * 3 * SIDE**2
    assert disk == pytest.approx(4 * 4 * numbers / 1e9, abs=0.0051), "two decimals"
    assert 8 * numbers / 2 / 1e9 < memory < 4
    estimate = re.fullmatch(
        r"estimate: (\d+) min for 1 iterations of ([\d.]+) s, (\d+) real images/s needed",
        said[space + 1],
    )
    assert estimate is not None
    minutes, seconds, images = map(float, estimate.groups())
    # as the seconds were before they were rounded to three digits
    half = 5 * 10 ** (math.floor(math.log10(seconds)) - 3)
    fewest, most = seconds - half, seconds + half
    assert round(fewest / 60) <= minutes <= round(most / 60)
    assert round(4000 / most) <= images <= round(4000 / fewest)
    began = [i for i, line in enumerate(said) if line.startswith("condense 1/1")]
    assert space + 1 < began[0], "before the first iteration"
    line = json.loads((out / "metrics.jsonl").read_text())
    assert line["seconds"] / 4 < seconds < line["seconds"] * 4, "as estimated"

    condensed = SyntheticSet.load(out / "synthetic.safetensors")
    assert condensed.images.shape == (1000 * IPC, 3, SIDE, SIDE)
    assert condensed.images.isfinite().all()
    assert condensed.images.min() >= 0
    assert condensed.images.max() <= 1
    assert torch.equal(condensed.labels, torch.arange(1000).repeat_interleave(IPC))
    assert tuple(condensed.class_names) == subset_classes("imagenet1k")
    assert (condensed.ipc, condensed.factor) == (IPC, 3)
    means = condensed.images.view(1000, -1).mean(1) * 255
    expected = torch.tensor([float(grey(label)) for label in range(1000)])
    assert (means - expected).abs().max() < 8, "every class is made of its own images"


def test_imagenet_1k_in_groups_of_classes(tree: Path, tmp_path: Path) -> None:
    """Ridge regression and a basis compare 20 classes at a time, five groups in each chunk."""
    out = tmp_path / "run"
    given = ["--dataset", "imagenet1k", "--data-root", str(tree), "--ipc", "2", "--factor", "1"]
    given += ["--add", "ridge:1", "--decode", "basis", "--decoded", "4", "--class-chunk", "100"]
    tiny = ["--size", str(SIDE), "--network", "convnet3", "--real-batch", "4", "--iterations", "1"]
    plain = ["--loader", "folder", "--workers", "1", "--device", "cpu", "--no-compile"]
    plain += ["--lr-img", "0.001", "--out", str(out)]
    done = run_ranks(2, "m3d_fast.condense", *given, *tiny, *plain)
    assert done.returncode == 0, done.stderr
    assert "100 classes at a time" in done.stderr

    condensed = SyntheticSet.load(out / "synthetic.safetensors")
    images, labels = condensed.decode()
    assert images.shape == (1000 * 4, 3, SIDE, SIDE)
    assert torch.equal(labels, torch.arange(1000).repeat_interleave(4))
    means = images.view(1000, -1).mean(1) * 255
    expected = torch.tensor([float(grey(label)) for label in range(1000)])
    assert (means - expected).abs().max() < 8, "every class is made of its own images"
