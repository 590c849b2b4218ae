"""A condensed set is evaluated from its file alone, to the accuracies of its run."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.config import CondenseConfig
from m3d_fast.construction import condense
from m3d_fast.evaluate import build_parser, command
from m3d_fast.evaluation.config import EvaluateConfig
from m3d_fast.evaluation.evaluator import evaluate
from m3d_fast.synthetic import SyntheticSet

QUICK = EvaluateConfig(epochs=2, repeats=2, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "run"
    settings = {"dataset": "digits", "iterations": 1, "real_batch": 4, "device": "cpu"}
    condense(CondenseConfig(**settings, precision="fp32", out=str(folder)))
    return folder


@pytest.fixture
def file(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(run / "synthetic.safetensors", tmp_path / "mine.safetensors"))


def test_a_file_has_the_accuracies_of_its_run(run: Path, file: Path) -> None:
    of_run, of_file = evaluate(run, QUICK), evaluate(file, QUICK, dataset="digits")
    assert [result["method"] for result in of_run["results"]] == ["initial", "m3d"]
    assert [result["method"] for result in of_file["results"]] == ["m3d"]
    assert of_file["results"][0]["accuracies"] == of_run["results"][1]["accuracies"]
    written = json.loads((file.parent / "mine.evaluation.json").read_text())
    assert written == of_file
    assert written["condensation_seconds"] is None


def test_sets_of_others_have_the_accuracies_of_theirs(run: Path, tmp_path: Path) -> None:
    known = SyntheticSet.load(run / "synthetic.safetensors")
    images, labels = known.decode()
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    torch.save({"images": images[shuffled], "labels": labels[shuffled]}, tmp_path / "theirs.pt")
    known.export(tmp_path / "folder", "imagefolder")
    known.export(tmp_path / "exact.npz", "npz", decoded=False)
    expected = evaluate(run, QUICK)["results"][1]["accuracies"]
    exact = evaluate(tmp_path / "exact.npz", QUICK)["results"][0]
    assert exact["accuracies"] == expected
    theirs = evaluate(tmp_path / "theirs.pt", QUICK, dataset="digits")["results"][0]
    assert theirs["method"] == "condensed"
    # within a class in another order: not to the last bit, but not to another class either
    assert theirs["mean"] == pytest.approx(exact["mean"], abs=0.15)
    rounded = evaluate(tmp_path / "folder", QUICK)["results"][0]
    assert rounded["mean"] == pytest.approx(exact["mean"], abs=0.05)
    assert (tmp_path / "folder.evaluation.json").is_file()


def test_the_command_prints_the_table(file: Path, tmp_path: Path, capsys) -> None:
    words = ["--epochs=1", "--repeats=1", "--device=cpu", "--baselines=random"]
    given = ["--set", str(file), "--dataset", "digits", "--out", str(tmp_path / "results")]
    command(build_parser().parse_args([*given, *words]))
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[2:]] == ["random", "m3d"]
    assert (tmp_path / "results" / "mine.evaluation.json").is_file()
    assert not (file.parent / "mine.evaluation.json").exists()


def test_a_set_of_another_origin_names_no_method(file: Path) -> None:
    known = SyntheticSet.load(file)
    bare = SyntheticSet(
        known.images, known.labels, known.class_names, known.factor, known.mean, known.std
    )
    bare.save(file)
    with pytest.raises(UserError, match=r"dataset: .* names none; give one with --dataset"):
        evaluate(file, QUICK)
    content = evaluate(file, QUICK, dataset="digits")
    assert [result["method"] for result in content["results"]] == ["condensed"]


def test_what_does_not_fit_is_refused_and_nothing_written(run: Path, file: Path) -> None:
    before = sorted(file.parent.iterdir())
    with pytest.raises(UserError, match=r"images of 3 channels for cifar10, got 1 x 16 x 16"):
        evaluate(file, QUICK, dataset="cifar10")
    with pytest.raises(UserError, match=r"expected the file of a condensed set beside --dataset"):
        evaluate(run, QUICK, dataset="digits")
    with pytest.raises(UserError, match="split held-out"):
        evaluate(file, EvaluateConfig(split="held-out"), dataset="digits")
    with pytest.raises(UserError, match=r"set: .*none\.safetensors is not the file or folder"):
        command(build_parser().parse_args(["--set", str(file.parent / "none.safetensors")]))
    assert sorted(file.parent.iterdir()) == before


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    damaged = tmp_path / "set.safetensors"
    damaged.write_bytes(torch.arange(100, dtype=torch.uint8).numpy().tobytes())
    with pytest.raises(UserError, match=str(damaged)):
        evaluate(damaged, QUICK, dataset="digits")
