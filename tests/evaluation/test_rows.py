"""Rows of an evaluation: coresets as runs, the whole training set, the split tested on."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from m3d_fast import CondenseConfig, EvaluateConfig, condense, evaluate
from m3d_fast.common import hardware
from m3d_fast.common.errors import UserError
from m3d_fast.distributed import Ranks
from m3d_fast.evaluation import scheduler, whole_set
from m3d_fast.evaluation.evaluator import Evaluation
from m3d_fast.evaluation.results import Task, table
from m3d_fast.evaluation.streamed_set import StreamedSet
from m3d_fast.loaders import open_dataset
from m3d_fast.run.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that held images out; a coreset, which needs no iterations."""
    select(tmp_path / "run", hold_out=0.5)
    return tmp_path / "run"


def select(out: Path, **given: Any) -> None:
    condense(CondenseConfig(dataset="digits", method="random", out=str(out), device="cpu", **given))


def quick(**given: Any) -> EvaluateConfig:
    return EvaluateConfig(**({"epochs": 1, "repeats": 1, "device": "cpu"} | given))


def test_a_coreset_is_evaluated_as_it_was_selected(run: Path) -> None:
    """Also where the baseline of its name is asked for, which would choose anew every time."""
    content = evaluate(run, quick(baselines="random"))
    assert [result["method"] for result in content["results"]] == ["random"]
    evaluation = Evaluation(RunFolder(run), quick(), Ranks())
    for repeat in (0, 1):
        job = evaluation._scheduler._build(Task("random", "convnet3", repeat))
        images, labels = job.images, job.labels
        assert torch.equal(images[torch.arange(10)], evaluation.synthetic.images)
        assert labels.tolist() == list(range(10))


def test_the_file_says_which_split_networks_were_tested_on(run: Path) -> None:
    held_out = evaluate(run, quick(split="held-out"))
    images = sum(open_dataset("digits", split="held-out", hold_out=0.5).class_sizes)
    assert (held_out["protocol"]["split"], held_out["test_images"]) == ("held-out", images)
    assert "no test image was read" in held_out["selection"]
    assert "held-out accuracy (%)" in table(held_out)
    test = evaluate(run, quick())
    assert (test["protocol"]["split"], test["test_images"]) == ("test", 359)
    kept = json.loads((run / "evaluation-1.json").read_text())
    assert kept["results"] == held_out["results"]


def test_processes_test_on_the_same_split(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Processes:
        def __init__(self, count, setup, open_test) -> None:
            opened.append(open_test().class_sizes)
            raise UserError("seen")

    monkeypatch.setattr(scheduler, "Workers", Processes)
    monkeypatch.setattr(scheduler, "count_processes", lambda *_: 2)
    for split in ("held-out", "test"):
        with pytest.raises(UserError, match="seen"):
            evaluate(run, quick(split=split))
    expected = [open_dataset("digits", split=s, hold_out=0.5) for s in ("held-out", "test")]
    assert opened == [images.class_sizes for images in expected]


def test_baselines_never_see_held_out_images(run: Path) -> None:
    evaluation = Evaluation(RunFolder(run), quick(), Ranks())
    train = open_dataset("digits", hold_out=0.5)
    assert evaluation.train.class_sizes == train.class_sizes
    assert torch.equal(evaluation.train.take(4, range(30)), train.take(4, range(30)))


def test_held_out_of_a_run_without_is_refused(tmp_path: Path) -> None:
    select(tmp_path / "run")
    with pytest.raises(UserError, match="the run held no image out; expected one condensed with"):
        evaluate(tmp_path / "run", quick(split="held-out"))
    with pytest.raises(UserError, match="split: 'heldout' is not known; did you mean held-out"):
        evaluate(tmp_path / "run", quick(split="heldout"))
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_the_whole_training_set_is_a_row_with_epochs_of_its_own(run: Path) -> None:
    content = evaluate(run, quick(baselines="whole", whole_epochs=2))
    rows = {result["method"]: result for result in content["results"]}
    size = sum(open_dataset("digits", hold_out=0.5).class_sizes)
    assert (rows["whole"]["training_images"], rows["whole"]["epochs"]) == (size, 2)
    assert (rows["random"]["training_images"], rows["random"]["epochs"]) == (10, 1)
    again = evaluate(run, quick(baselines="whole", whole_epochs=1))
    rows = {result["method"]: result for result in again["results"]}
    assert (rows["whole"]["epochs"], len(rows["whole"]["accuracies"])) == (1, 1)


def test_the_whole_training_set_is_all_of_it(run: Path) -> None:
    evaluation = Evaluation(RunFolder(run), quick(baselines="whole"), Ranks())
    job = evaluation._scheduler._build(Task("whole", "convnet3", 0))
    images, labels = job.images, job.labels
    train = open_dataset("digits", hold_out=0.5)
    everything = torch.cat([train.take(c, range(n)) for c, n in enumerate(train.class_sizes)])
    assert torch.equal(images[torch.arange(len(images))], everything.float() / 255)
    assert torch.bincount(labels).tolist() == list(train.class_sizes)


def test_a_streamed_set_trains_the_same_networks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not held in memory is read batch by batch, in the same order."""
    held = evaluate(run, quick(baselines="whole"))
    (run / "evaluation.json").unlink()

    def stream(image_set: StreamedSet, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        read.append(len(batches))
        return own(image_set, batches)

    read, own = list[int](), StreamedSet.read
    monkeypatch.setattr(StreamedSet, "read", stream)
    for module in (whole_set, scheduler):
        monkeypatch.setattr(module, "MemoryImages", type(None))
    streamed = evaluate(run, quick(baselines="whole"))
    size = sum(open_dataset("digits", hold_out=0.5).class_sizes)
    assert read == [-(-size // 64)]
    for one, other in zip(held["results"], streamed["results"], strict=True):
        assert one["accuracies"] == other["accuracies"]
        assert one["training_images"] == other["training_images"]


def test_the_initial_images_are_left_out_on_request(tmp_path: Path) -> None:
    given = {"dataset": "digits", "iterations": 1, "real_batch": 4, "device": "cpu"}
    condense(CondenseConfig(**given, out=str(tmp_path)))
    methods = [r["method"] for r in evaluate(tmp_path, quick(initial=False))["results"]]
    assert methods == ["m3d"]


def test_long_networks_begin_first_and_rows_keep_their_order(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes longest does not begin when the other processes end."""

    def note(self: scheduler.Scheduler, tasks: list[Task], **given: Any) -> Any:
        begun.extend((task.method, task.repeat) for task in tasks)
        return own(self, tasks, **given)

    begun, own = list[tuple[str, int]](), scheduler.Scheduler.train
    monkeypatch.setattr(scheduler.Scheduler, "train", note)
    content = evaluate(run, quick(baselines="k-center,whole", repeats=2))
    rows = ["k-center", "random"]
    assert begun == [("whole", 0), ("whole", 1), *((name, n) for name in rows for n in (0, 1))]
    assert [result["method"] for result in content["results"]] == ["k-center", "whole", "random"]


def test_networks_are_compiled_where_their_work_is_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whether they are does not depend on which baselines are trained beside them."""
    given = {"dataset": "digits", "iterations": 1, "real_batch": 4, "device": "cpu"}
    condense(CondenseConfig(**given, out=str(tmp_path)))
    monkeypatch.setattr(hardware, "has_compiler", lambda: True)
    embedded, trained = 300 * 16**2, 40 * 10 * 16**2
    monkeypatch.setattr(hardware, "COMPILE_PAYS_TRAINING_PIXELS", 4 * trained)
    monkeypatch.setattr(hardware, "COMPILE_PAYS_PIXELS", 4 * embedded)

    def compiled(**given) -> frozenset[str]:
        config = EvaluateConfig(device="cpu", epochs=10, repeats=1, **given)
        return Evaluation(RunFolder(tmp_path), config, Ranks()).setup.compiled

    assert compiled() == {"initial", "m3d"}, "they share one compilation"
    assert compiled(baselines="random") == {"initial", "m3d"}
    assert compiled(initial=False) == frozenset()
    assert compiled(baselines="random", compile=True) == {"random", "initial", "m3d"}
    assert compiled(compile=False) == frozenset()
    for given in (None, True):
        config = EvaluateConfig(device="cpu", epochs=10, networks="vit-tiny", compile=given)
        setup = Evaluation(RunFolder(tmp_path), config, Ranks()).setup
        assert setup.is_compiled(Task("m3d", "vit-tiny", 0)) == bool(given)
