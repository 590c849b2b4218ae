"""Scores equal those of DD-Ranking's own package on the same accuracies."""

import json
from pathlib import Path

import pytest

from m3d_fast.evaluation.config import EvaluateConfig
from m3d_fast.evaluation.evaluator import evaluate
from m3d_fast.evaluation.results import table
from m3d_fast.evaluation.scores import (
    add_scores,
    name_missing,
    score_augmentation_robustness,
    score_label_robustness,
)
from m3d_fast.run.folder import RunFolder
from tests.helpers.commands import finish_run

# what compute_metrics of ddranking 0.2.0 returned for these accuracies, given to its classes
# LabelRobustScoreHard and AugmentationRobustScore in place of trainings. Its dependencies
# (numpy below 2) rule out that it is installed here
CONDENSED, RANDOM, FULL = (0.635, 0.641, 0.628), (0.262, 0.258, 0.270), 0.848
PLAIN_CONDENSED, PLAIN_RANDOM = (0.571, 0.566, 0.58), (0.247, 0.241, 0.252)
PACKAGE = {
    "hlr": 0.2133333333333333,
    "ior": 0.3713333333333333,
    "lrs": 0.3039299549909993,
    "ars": 0.4463386333105553,
}


def content(augment: str, condensed: tuple[float, ...], random: tuple[float, ...]) -> dict:
    rows = {"random": random, "whole": (FULL - 0.01, FULL + 0.01), "dm": condensed}
    return {
        "synthetic_sha256": "1",
        "protocol": {"labels": "hard", "augment": augment, "cutmix": 0.5 * (augment != "none")},
        "results": [
            {"method": method, "network": "n", "accuracies": list(accuracies)}
            for method, accuracies in rows.items()
        ],
    }


def test_scores_are_those_of_the_package() -> None:
    usual = content("color", CONDENSED, RANDOM)
    plain = content("none", PLAIN_CONDENSED, PLAIN_RANDOM)
    add_scores(usual, plain)
    random, full, condensed = usual["results"]
    assert "scores" not in random
    assert "scores" not in full
    assert condensed["scores"] == pytest.approx(
        PACKAGE | {"ratio": sum(CONDENSED) / 3 / FULL}, rel=1e-12
    )
    assert name_missing(usual) is None
    add_scores(plain, usual)
    assert plain["results"][2]["scores"]["ars"] == pytest.approx(PACKAGE["ars"], rel=1e-12)


def test_the_scale_ends_at_0_and_1() -> None:
    assert score_label_robustness(recovery=-1, improvement=1) == pytest.approx(1)
    assert score_label_robustness(recovery=1, improvement=-1) == pytest.approx(0, abs=1e-15)
    assert score_augmentation_robustness(1, 1) == pytest.approx(1)
    equal = score_label_robustness(recovery=0, improvement=0)
    assert equal == score_augmentation_robustness(0, 0) == pytest.approx(0.268941, abs=1e-6)


@pytest.mark.parametrize(
    ("lacking", "known", "line"),
    [
        ("whole", {"ior", "ars"}, "for share of the full set, HLR, LRS add --baselines whole"),
        ("random", {"hlr", "ratio"}, "for IOR, LRS, ARS add --baselines random and the same eval"),
    ],
)
def test_what_lacks_a_row_is_none(lacking: str, known: set[str], line: str) -> None:
    usual = content("color", CONDENSED, RANDOM)
    usual["results"] = [row for row in usual["results"] if row["method"] != lacking]
    add_scores(usual, content("none", PLAIN_CONDENSED, PLAIN_RANDOM))
    scores = usual["results"][-1]["scores"]
    assert {name for name, score in scores.items() if score is not None} == known
    assert (name_missing(usual) or "").startswith(line)


def test_recovery_is_of_hard_labels() -> None:
    usual = content("color", CONDENSED, RANDOM)
    usual["protocol"]["labels"] = "soft"
    add_scores(usual, None)
    scores = usual["results"][2]["scores"]
    assert {name for name, score in scores.items() if score is not None} == {"ior", "ratio"}
    assert (name_missing(usual) or "").endswith("an evaluation with hard labels")


@pytest.mark.parametrize("changed", ["set", "rate"])
def test_a_counterpart_is_of_the_same_set_and_protocol(changed: str) -> None:
    usual = content("color", CONDENSED, RANDOM)
    plain = content("none", PLAIN_CONDENSED, PLAIN_RANDOM)
    if changed == "set":
        plain["synthetic_sha256"] = "2"
    else:
        plain["protocol"]["lr"] = 0.1
    add_scores(usual, plain)
    assert usual["results"][2]["scores"]["ars"] is None


def test_an_evaluation_without_augmentation_completes_the_scores(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run", "--iterations", "1")
    quick = {"epochs": 1, "repeats": 1, "device": "cpu", "precision": "fp32", "initial": False}
    usual = evaluate(run, EvaluateConfig(**quick, baselines="random,whole", whole_epochs=1))
    assert usual["image_bytes"] == 10 * 16 * 16 * 4
    assert usual["hard_label_bytes"] == 10 * 8
    assert usual["pretraining_seconds"] == 0
    plain = evaluate(run, EvaluateConfig(**quick, baselines="random", augment="none"))
    assert plain["protocol"]["augment"] == "none"
    assert plain["protocol"]["cutmix"] == 0
    assert plain["results"][1]["scores"]["ars"] is not None
    assert json.loads((run / "evaluation_plain.json").read_text()) == plain
    before = usual["results"][2]["scores"]
    after = evaluate(run, EvaluateConfig(**quick))["results"][2]["scores"]
    assert before == after | {"ars": None}
    assert after["ars"] == plain["results"][1]["scores"]["ars"]
    written = json.loads(RunFolder(run).evaluation_file.read_text())
    assert written["results"][2]["scores"] == after
    assert "LRS (%)  ARS (%)" in table(written)
