"""Class-incremental learning: what is trained and tested at each step, and resumed."""

import json
import re
from pathlib import Path

import pytest
import torch

from m3d_fast import SyntheticSet
from m3d_fast.common.errors import UserError
from m3d_fast.coreset import random_images
from m3d_fast.incremental.config import ContinualConfig
from m3d_fast.incremental.experiment import Experiment, learn_continually
from m3d_fast.incremental.memory import TestImages, draw_order, select_memory
from m3d_fast.loaders import open_dataset
from tests.helpers.commands import run

QUICK = {"steps": 2, "orders": 2, "epochs": 5, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three real images of each digit, and noise."""
    folder, real = tmp_path_factory.mktemp("sets"), open_dataset("digits")
    images = random_images(real, 3, 0).flatten(0, 1).float() / 255
    labels = torch.arange(10).repeat_interleave(3)
    info = {"dataset": "digits", "method": "chosen"}
    for name, pixels in (("chosen", images), ("noise", torch.rand(images.shape))):
        path = folder / f"{name}.safetensors"
        SyntheticSet(pixels, labels, real.class_names, 1, real.mean, real.std, info).save(path)
    return sorted(folder.iterdir())


def test_a_step_knows_the_classes_that_came() -> None:
    orders = [draw_order(0, number, 10) for number in range(3)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert orders[0] != orders[1]
    assert orders == [draw_order(0, number, 10) for number in range(3)]

    real = open_dataset("digits", split="test")
    test = TestImages(real).select([7, 2, 5])
    assert test.class_names == ("7", "2", "5")
    assert test.class_sizes == tuple(real.class_sizes[label] for label in (7, 2, 5))
    assert torch.equal(test.take(1, range(4)), real.take(2, range(4)))

    pixels = torch.rand(10, 2, 1, 16, 16)
    images, labels = select_memory(pixels, 2, [7, 2, 5])
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert torch.equal(images._pixels, pixels[[7, 2, 5]].flatten(0, 1))


def test_an_interrupted_experiment_goes_on(sets: list[Path], tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    trained, whole = [], Experiment._train_network

    def stop(self, memory, order, step, report):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((memory.name, order, step))
        return whole(self, memory, order, step, report)

    monkeypatch.setattr(Experiment, "_train_network", stop)
    config = ContinualConfig(**QUICK, out=str(out))
    with pytest.raises(KeyboardInterrupt):
        learn_continually(sets[:1], config)
    partial = json.loads((out / "continual.json").read_text())["results"]
    assert [len(accuracies) for accuracies in partial[0]["orders"]] == [2, 1]
    trained.clear()
    resumed = learn_continually(sets[:1], config)
    assert trained == [("chosen", 1, 1)]
    assert resumed["results"][0]["orders"][0] == partial[0]["orders"][0]
    monkeypatch.undo()

    words = [f"--{name}={value}" for name, value in (QUICK | {"orders": 1}).items()]
    again = ["--out", str(tmp_path / "again")]
    done = run("continual", *map(str, sets), *words, *again, "--random")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "again" / "continual.json").read_text())
    results = {result["set"]: result for result in content["results"]}
    assert list(results) == ["chosen", "noise", "random"]
    for name, result in results.items():
        assert len(result["orders"][0]) == 2
        assert result["average"]["mean"] == pytest.approx(sum(result["orders"][0]) / 2)
        assert re.search(rf"^{name} +1 +(\d+\.\d+ +){{2}}\d+\.\d+$", done.stdout, re.MULTILINE)
    assert results["chosen"]["orders"][0] == partial[0]["orders"][0]
    learned, noise = (results[name]["orders"][0] for name in ("chosen", "noise"))
    assert learned[0] > 0.4  # of five classes
    assert learned[1] > 0.3  # of ten
    assert learned[1] > noise[1] + 0.1
    assert (tmp_path / "again" / "continual.png").read_bytes().startswith(b"\x89PNG")


def test_another_set_drops_the_results_of_its_name(sets: list[Path], tmp_path: Path) -> None:
    brief = QUICK | {"steps": 1, "orders": 1, "epochs": 1, "out": str(tmp_path / "out")}
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(sets[0].read_bytes())
    first = learn_continually([mine, sets[1]], ContinualConfig(**brief))
    mine.write_bytes(sets[1].read_bytes())
    second = learn_continually([mine], ContinualConfig(**brief))
    kept = {result["set"]: result["orders"] for result in second["results"]}
    assert kept["noise"] == first["results"][1]["orders"]
    assert kept["mine"] == kept["noise"]  # the same images by now
    learn_continually([mine], ContinualConfig(**brief | {"seed": 1}))
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert names == {"continual.json", "continual-1.json"}


def test_what_does_not_fit_is_one_sentence(sets: list[Path], tmp_path: Path) -> None:
    out = {"out": str(tmp_path / "out"), "device": "cpu"}
    with pytest.raises(UserError, match="steps: expected a number that divides the 10 classes, g"):
        learn_continually(sets, ContinualConfig(**out, steps=3))
    with pytest.raises(UserError, match="orders: expected a number above 0, got 0"):
        learn_continually(sets, ContinualConfig(**out, orders=0))
    with pytest.raises(UserError, match="expected sets of different names, got chosen"):
        learn_continually([sets[0], sets[0]], ContinualConfig(**out))
    known = SyntheticSet.load(sets[0])
    small = SyntheticSet(
        torch.rand(30, 1, 24, 24), known.labels, known.class_names, 1, known.mean, known.std
    )
    small.save(tmp_path / "small.safetensors")
    paths = [sets[0], tmp_path / "small.safetensors"]
    with pytest.raises(UserError, match="small: expected a set of digits at 16 px, as chosen, got"):
        learn_continually(paths, ContinualConfig(**out, dataset="digits"))
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]
