"""Coresets are runs like any other: the same folder, the same flags, real images in it."""

import json
from pathlib import Path

import pytest
import torch

from m3d_fast import CondenseConfig, SyntheticSet, condense, construction
from m3d_fast.common.errors import UserError
from m3d_fast.config import ResolvedConfig
from m3d_fast.coreset import CORESETS, Features, herding
from m3d_fast.loaders import RealImages, open_dataset


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).double()


@pytest.fixture(autouse=True)
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are pixels: no network is trained."""

    def features(config: ResolvedConfig, real: RealImages) -> Features:
        return pixels

    monkeypatch.setattr(construction, "_train_features", features)


def select(out: Path, method: str, *, resume: bool = False, **given) -> SyntheticSet:
    config = CondenseConfig(dataset="digits", method=method, out=str(out), device="cpu", **given)
    return condense(config, resume=resume)


def as_bytes(images: torch.Tensor) -> list[bytes]:
    return [image.contiguous().numpy().tobytes() for image in images]


@pytest.mark.parametrize("method", CORESETS)
def test_a_coreset_is_a_run_of_real_images(method: str, tmp_path: Path) -> None:
    chosen = select(tmp_path / "run", method, ipc=3)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.json", "synthetic.safetensors", "grid.png", "metrics.jsonl"}
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["seconds"] > 0
    assert (chosen.ipc, chosen.factor, chosen.info["method"]) == (3, 1, method)
    assert chosen.info["iterations"] == 0
    real = open_dataset("digits")
    for label, images in enumerate(chosen.images.unflatten(0, (10, 3))):
        members = as_bytes(real.take(label, range(real.class_sizes[label])).float() / 255)
        assert len(set(as_bytes(images))) == 3
        assert set(as_bytes(images)) <= set(members)


def test_herding_selects_by_the_features(tmp_path: Path) -> None:
    chosen = select(tmp_path / "run", "herding", ipc=2)
    expected = herding(open_dataset("digits"), 2, pixels)
    assert torch.equal(chosen.images, expected.flatten(0, 1).float() / 255)


def test_random_depends_on_the_seed(tmp_path: Path) -> None:
    one, again, other = (
        select(tmp_path / str(number), "random", seed=seed).images
        for number, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("method", CORESETS)
def test_held_out_images_are_never_selected(method: str, tmp_path: Path) -> None:
    chosen = select(tmp_path / "run", method, ipc=5, hold_out=0.9)
    held_out = open_dataset("digits", split="held-out", hold_out=0.9)
    for label, images in enumerate(chosen.images.unflatten(0, (10, 5))):
        others = held_out.take(label, range(held_out.class_sizes[label])).float() / 255
        assert not set(as_bytes(images)) & set(as_bytes(others))


def test_a_finished_coreset_resumes_to_itself(tmp_path: Path) -> None:
    select(tmp_path, "random")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
    condense(CondenseConfig(out=str(tmp_path)), resume=True)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
    assert after == before


def test_a_coreset_that_was_killed_is_selected_again(tmp_path: Path) -> None:
    expected = select(tmp_path / "straight", "k-center").images
    select(tmp_path / "killed", "k-center")
    for name in ("synthetic.safetensors", "grid.png"):
        (tmp_path / "killed" / name).unlink()
    (tmp_path / "killed" / "metrics.jsonl").write_text("{")
    resumed = select(tmp_path / "killed", "k-center", resume=True)
    assert torch.equal(resumed.images, expected)
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "herdin"}, "method: 'herdin' is not known; did you mean herding?"),
        ({"method": "whole"}, "expected it among the --baselines of an evaluation"),
        ({"iterations": 5}, "iterations: random keeps real images as they are; expected 0, got 5"),
        ({"factor": 2}, "factor: random keeps real images as they are; expected 1, got 2"),
        ({"lr_img": 1.0}, "lr_img: random selects real images; leave it out"),
        ({"kernel": "linear"}, "kernel: random selects real images; leave it out"),
        ({"options": {"bins": "3"}}, "option bins: random has no options"),
        ({"ipc": 500}, "ipc: expected at most the 139 images of the smallest class, got 500"),
        ({"hold_out": 0.001}, "a share of 0.001 leaves class '0'"),
        ({"hold_out": 1.5}, "hold_out: expected a share from 0 to below 1, got 1.5"),
    ],
)
def test_what_a_coreset_cannot_be_is_refused(given: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        select(tmp_path / "run", **({"method": "random"} | given))
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_ranks_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from m3d_fast.distributed import Ranks

    config = CondenseConfig(dataset="digits", method="random", out=str(tmp_path / "run"))
    with pytest.raises(UserError, match="random is selected by one process, 2 were started"):
        construction._select_coreset(config, Ranks(0, 2), resume=False)
    assert not (tmp_path / "run").exists()
