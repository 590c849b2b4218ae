"""The best test epoch beside the last, which is that of an evaluation."""

import json

import pytest

from benchmarks import best_epoch, training
from m3d_fast import CondenseConfig, EvaluateConfig, condense, evaluate


def test_epochs_are_every_few_and_the_last():
    assert best_epoch.find_epochs(10, 4) == [4, 8, 10]
    assert best_epoch.find_epochs(8, 4) == [4, 8]


def test_the_last_accuracy_is_that_of_the_evaluation(tmp_path, monkeypatch):
    small = {"dataset": "digits", "ipc": 1, "iterations": 1, "real_batch": 4, "device": "cpu"}
    condense(CondenseConfig(**small, out=str(tmp_path)))
    config = EvaluateConfig(device="cpu", initial=False, epochs=5, repeats=2, compile=False)
    expected = evaluate(tmp_path, config)["results"][0]["accuracies"]
    monkeypatch.setattr(best_epoch, "DATASET", "digits")
    monkeypatch.setattr(training, "has_compiler", lambda: False)
    file = tmp_path / "best.json"
    words = ["best_epoch", str(tmp_path / "synthetic.safetensors"), "--out", str(file)]
    monkeypatch.setattr("sys.argv", [*words, "--epochs", "5", "--every", "2"])
    best_epoch.main()
    content = json.loads(file.read_text())
    assert content["tested_after"] == [2, 4, 5]
    assert [network[-1] for network in content["accuracies"]] == expected
    assert content["last"]["mean"] == pytest.approx(sum(expected) / 2)
    assert content["best_test_epoch"]["mean"] >= content["last"]["mean"]
    second = tmp_path / "second.json"
    only = ["--out", str(second), "--epochs", "5", "--every", "2", "--first", "1", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", [*words[:2], *only])
    best_epoch.main()
    assert json.loads(second.read_text())["accuracies"] == content["accuracies"][1:]
    monkeypatch.setattr(best_epoch, "train_network", pytest.fail)
    best_epoch.main()
    monkeypatch.setattr("sys.argv", [*words, "--epochs", "6"])
    with pytest.raises(SystemExit):
        best_epoch.main()
