"""Accuracy over iterations: every snapshot under one protocol, resumed where it was interrupted."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import curves
from m3d_fast.common.errors import UserError
from m3d_fast.evaluation import snapshots
from m3d_fast.evaluation.config import EvaluateConfig
from m3d_fast.evaluation.evaluator import evaluate
from m3d_fast.evaluation.snapshots import evaluate_snapshots
from tests.helpers.commands import finish_run, run

QUICK = {"epochs": 1, "repeats": 1, "device": "cpu", "precision": "fp32"}


@pytest.fixture
def curves_of(tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """``python -m benchmarks.curves``: the stem of its files."""

    def write(*runs: Path) -> Path:
        out = tmp_path / "curves"
        monkeypatch.setattr(sys, "argv", ["curves", *map(str, runs), "--out", str(out)])
        curves.main()
        return out

    return write


@pytest.fixture(scope="module")
def condensed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snapshots") / "run"
    return finish_run(out, "--average", "0.5", "--iterations", "5", "--snapshot-every", "2")


def test_a_snapshot_is_the_set_of_a_shorter_run(condensed: Path, tmp_path: Path) -> None:
    shorter = finish_run(tmp_path / "run", "--average", "0.5", "--iterations", "4")
    written = condensed / "snapshots" / "0000004.safetensors"
    assert written.read_bytes() == (shorter / "synthetic.safetensors").read_bytes()


def test_every_snapshot_has_the_accuracies_of_its_set(
    condensed: Path, curves_of, monkeypatch
) -> None:
    evaluated = []

    def stop(subject, *others):
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluated.append(subject)
        return whole(subject, *others)

    whole = snapshots.evaluate_subject
    monkeypatch.setattr(snapshots, "evaluate_subject", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_snapshots(condensed, EvaluateConfig(**QUICK))
    partial = json.loads((condensed / "snapshots.json").read_text())
    assert [result["iteration"] for result in partial["results"]] == [0, 2, 5]
    monkeypatch.undo()
    first = condensed / "snapshots" / "0000002.evaluation.json"
    before = first.read_bytes()

    given = [f"--{name}={value}" for name, value in QUICK.items()]
    done = run("evaluate", str(condensed), "--snapshots", *given)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["0", "2", "4", "5"]
    assert first.read_bytes() == before, "not trained again"
    content = json.loads((condensed / "snapshots.json").read_text())
    assert content["results"][0] == partial["results"][0]
    alone = evaluate(
        condensed / "snapshots" / "0000004.safetensors",
        EvaluateConfig(**QUICK),
        out=str(condensed / "other"),
    )
    assert content["results"][2]["accuracies"] == alone["results"][0]["accuracies"]
    spent = [result["condensation_seconds"] for result in content["results"]]
    assert spent == sorted(spent)
    assert spent[0] == 0 < spent[1] < spent[3]
    assert (condensed / "snapshots.png").read_bytes().startswith(b"\x89PNG")

    out = curves_of(condensed)
    (curve,) = json.loads(out.with_suffix(".json").read_text())["runs"].values()
    assert [point["seconds"] for point in curve["results"]] == spent, "without a pool"
    assert [point["mean"] for point in curve["results"]] == [r["mean"] for r in content["results"]]
    assert not {"out", "data_root"} & set(curve["settings"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        curves_of(condensed, condensed)  # one line would hide the other


def test_a_curve_begins_where_the_run_before_ended(
    condensed: Path, curves_of, tmp_path: Path
) -> None:
    second = finish_run(
        tmp_path / "second", "--init", str(condensed), "--iterations", "2", "--snapshot-every", "1"
    )
    for each in (condensed, second):
        evaluate_snapshots(each, EvaluateConfig(**QUICK))
    runs = json.loads(curves_of(condensed, second).with_suffix(".json").read_text())["runs"]
    first, then = runs["run"]["results"], runs["second"]["results"]
    assert [point["iteration"] for point in then] == [5, 6, 7]
    assert then[0]["seconds"] == first[-1]["seconds"] < then[1]["seconds"]
    assert then[0]["accuracies"] == first[-1]["accuracies"], "the same images"


def test_what_cannot_be_evaluated_is_one_sentence(
    condensed: Path, curves_of, tmp_path: Path, capsys
) -> None:
    bare = shutil.copytree(condensed, tmp_path / "bare")
    shutil.rmtree(bare / "snapshots")
    (bare / "snapshots.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit):
        curves_of(bare)
    assert "expected snapshots.json in every run folder, found none in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"snapshots: .*bare has none; condense with --snapshot-e"):
        evaluate_snapshots(bare)
    with pytest.raises(UserError, match="snapshots: expected no --baselines"):
        evaluate_snapshots(condensed, EvaluateConfig(baselines="random"))
    done = run("evaluate", "--set", str(bare / "synthetic.safetensors"), "--snapshots")
    assert done.returncode == 2
    assert re.search("snapshots: expected a run folder, got --set", done.stderr)
