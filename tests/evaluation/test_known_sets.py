"""What an evaluation measures is what the set is worth, and only it reads test images."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.config import CondenseConfig
from m3d_fast.construction import condense
from m3d_fast.evaluation.config import EvaluateConfig
from m3d_fast.evaluation.evaluator import evaluate
from m3d_fast.loaders import open_dataset
from m3d_fast.synthetic import SyntheticSet

PER_CLASS = 139  # training images of the smallest class


def train_on(file: Path, synthetic: SyntheticSet, epochs: int) -> float:
    synthetic.save(file)
    config = EvaluateConfig(epochs=epochs, repeats=1, device="cpu", compile=False)
    (result,) = evaluate(file, config, dataset="digits")["results"]
    return result["mean"]


def test_the_training_set_reaches_its_accuracy_and_shuffled_labels_chance(tmp_path: Path) -> None:
    real = open_dataset("digits")
    images = torch.cat([real.take(c, np.arange(PER_CLASS)) for c in range(10)]).float() / 255
    known = SyntheticSet(
        images=images,
        labels=torch.arange(10).repeat_interleave(PER_CLASS),
        class_names=real.class_names,
        factor=1,
        mean=real.mean,
        std=real.std,
    )
    accuracy = train_on(tmp_path / "whole.safetensors", known, 4)
    assert 0.85 < accuracy < 1  # 93.9 % is seen
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    shuffled = replace(known, images=images[order])
    # a tenth of 359, to four standard deviations of a network that guesses
    assert abs(train_on(tmp_path / "shuffled.safetensors", shuffled, 2) - 0.1) < 4 * 0.0158


def write_idx(path: Path, numbers: np.ndarray) -> None:
    header = struct.pack(f">HBB{numbers.ndim}I", 0, 8, numbers.ndim, *numbers.shape)
    path.write_bytes(gzip.compress(header + numbers.astype(np.uint8).tobytes()))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "m3d", "hold_out": 0.2},
        {"method": "herding"},
        {"preset": "strong"},
        {"preset": "strong", "networks_from": "pool", "pool": 1, "pool_epochs": 0.1},
    ],
    ids=str,
)
def test_condensing_needs_no_test_images(settings, tmp_path: Path, monkeypatch) -> None:
    """The files of the test split do not exist: whatever read them would fail, as evaluating."""
    monkeypatch.setenv("M3D_FAST_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", rng.integers(0, 256, (100, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(100) % 10)
    steps = {} if settings.get("method") == "herding" else {"iterations": 1, "real_batch": 2}
    config = CondenseConfig(
        dataset="mnist", data_root=str(tmp_path), out=str(tmp_path / "run"), **steps, **settings
    )
    condense(config)
    assert (tmp_path / "run/synthetic.safetensors").exists()
    with pytest.raises(UserError, match="t10k-images"):
        evaluate(tmp_path / "run", EvaluateConfig(epochs=1, repeats=1))
