"""Several ranks under torchrun: the result of one process, whatever happens to them."""

import json
import os
import shutil
import signal
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from m3d_fast import EvaluateConfig, evaluate
from m3d_fast.common.errors import UserError
from m3d_fast.distributed import Ranks
from m3d_fast.engine import loop
from m3d_fast.evaluation import features
from m3d_fast.run.checkpoint import Checkpoints
from tests.helpers import quick_evaluate
from tests.helpers.commands import (
    PATIENCE,
    condense_digits,
    finish_run,
    one_thread,
    run,
    run_ranks,
    same_result,
    start_ranks,
    wait_for,
)

# one class at a time: a chunk of other classes would round differently in its last bits
SETTINGS = ("--class-chunk", "1", "--iterations", "24", "--checkpoint-every", "4")
BASELINES = "random,herding"
CONDENSE = "m3d_fast.condense"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return finish_run(tmp_path_factory.mktemp("alone") / "run", *SETTINGS)


def ranks_of(torchrun: "subprocess.Popen[str]") -> list[int]:
    """Process ids of torchrun's ranks, first rank first."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = [v.removeprefix(b"RANK=") for v in variables if v.startswith(b"RANK=")]
        if rank:
            found[int(rank[0])] = int(child)
    return [found[rank] for rank in sorted(found)]


def test_ranks_train_one_pool_and_end_with_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ("--networks-from", "pool", "--pool", "2", "--pool-epochs", "0.1", "--iterations", "4")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for out in (alone, shared):
        monkeypatch.setenv("M3D_FAST_CACHE", str(out / "cache"))
        flags = condense_digits(out / "run", "--class-chunk", "1", *pool)
        done = run("condense", *flags) if out == alone else run_ranks(2, CONDENSE, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("training a pool of 2 networks") == 1
        assert len(list((out / "cache/pools").glob("*.safetensors"))) == 1
        content = json.loads((out / "run/config.json").read_text())
        assert content["pretraining_seconds"] > 0
    same_result(shared / "run", alone / "run")


def test_a_method_of_one_process_refuses_ranks_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(loop, "join_ranks", lambda: nullcontext(Ranks(0, 2)))
    monkeypatch.setattr(Ranks, "gather", lambda ranks, own: [own, own])
    done = run("condense", *condense_digits(out, "--networks-from", "synthetic"))
    assert "m3d trains its networks on the whole synthetic set" in done.stderr
    assert done.returncode == 2
    assert not out.exists()


def test_one_of_two_ranks_is_killed_and_three_end_with_the_bytes_of_one_process(
    alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = start_ranks(2, CONDENSE, *condense_digits(out, *SETTINGS))
    wait_for(out / "checkpoint-*.safetensors")
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    _, err = job.communicate(timeout=PATIENCE)
    assert job.returncode != 0
    assert "another rank of the job is gone" in err
    assert not (out / "synthetic.safetensors").exists()
    done = run_ranks(3, CONDENSE, "--out", str(out), "--resume")
    assert done.returncode == 0, done.stderr
    same_result(out, alone)
    shards = [path.name for path in sorted(out.glob("checkpoint*"))]
    ranges = ["0000-0003", "0003-0006", "0006-0010"]
    assert shards == [f"checkpoint-0000024-classes-{r}.safetensors" for r in ranges]
    assert not list(out.glob(".*.part"))
    reports = [line for line in done.stderr.splitlines() if line.startswith("condense 24/24")]
    assert len(reports) == 1, "the first rank reports, for all"


def test_interrupted_ranks_save_and_one_process_goes_on(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # no checkpoint but that of the interruption
    rare = ("--checkpoint-every", "1000", "--log-every", "4")
    job = start_ranks(2, CONDENSE, *condense_digits(out, *SETTINGS, *rare))
    wait_for(out / "metrics.jsonl")
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=PATIENCE)
    assert f"resume with: python -m m3d_fast.condense --out {out} --resume" in err
    saved = Checkpoints(out).newest_iteration()
    assert saved is not None
    assert 4 <= saved < 24
    # what is written beside the result may change on the way
    flags = ("--checkpoint-every", "4", "--log-every", "2")
    done = run("condense", "--out", str(out), "--resume", *flags)
    assert done.returncode == 0, done.stderr
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (alone / name).read_bytes()
    assert [path.name for path in out.glob("checkpoint*")] == ["checkpoint.safetensors"]


def test_ranks_evaluate_to_the_accuracies_of_one_process(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EPOCHS", "IMAGES"):
        monkeypatch.setattr(features, name, getattr(quick_evaluate, name))
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(alone, first)
    shutil.copytree(alone, second)
    flags = ("--repeats", "2", "--epochs", "1", "--baselines", BASELINES, "--device", "cpu")
    with one_thread():
        evaluate(first, EvaluateConfig(repeats=2, epochs=1, baselines=BASELINES, device="cpu"))
    shared = run_ranks(3, quick_evaluate.__name__, str(second), *flags)
    assert shared.returncode == 0, shared.stderr
    kept = ("method", "network", "accuracies", "mean", "std", "training_images")
    results = [
        [{k: result[k] for k in kept} for result in json.loads(file.read_text())["results"]]
        for file in (first / "evaluation.json", second / "evaluation.json")
    ]
    assert results[0] == results[1]
    assert [len(result["accuracies"]) for result in results[0]] == [2] * 4
    rows = [line.split()[0] for line in shared.stdout.splitlines()]
    assert rows[2:] == ["random", "herding", "initial", "m3d"], "one table"


def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_ranks(2, CONDENSE, *condense_digits(out, "--ipc", "500"))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("python -m m3d_fast")]
    assert len(said) == 1
    assert "ipc: expected at most the 139 images" in said[0]
    assert "exitcode  : 2" in done.stderr
    assert not out.exists()


def test_an_error_of_one_rank_is_raised_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, exchanged = Ranks(0, 2), []
    others: list[str | None] = [None]
    monkeypatch.setattr(ranks, "gather", lambda own: exchanged.append(own) or [own, *others])
    with ranks.together():
        pass
    with pytest.raises(UserError, match="first") as raised, ranks.together():
        raise UserError("first")
    assert str(raised.value.__cause__) == "first"
    others[0] = "second"
    with pytest.raises(UserError, match="second"), ranks.together():
        pass
    assert exchanged == [None, "first", None], "one exchange each"
    for other in (KeyboardInterrupt, OSError):
        with pytest.raises(other), ranks.together():
            raise other
    assert len(exchanged) == 3, "no other exception waits for the ranks"


def test_one_rank_alone_lets_errors_through() -> None:
    error = UserError("alone")
    with pytest.raises(UserError) as raised, Ranks().together():
        raise error
    assert raised.value is error
    assert Ranks().leader_first(lambda: 3) == 3


@pytest.mark.parametrize(("size", "count"), [(1, 10), (3, 10), (4, 4), (7, 1000)])
def test_shares_are_contiguous_and_even(size: int, count: int) -> None:
    shares = [Ranks(rank, size).select_classes(count) for rank in range(size)]
    assert [c for share in shares for c in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_ranks_than_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"11 processes were started for 10 classes"):
        Ranks(0, 11).select_classes(10)


def test_devices_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(5, 8, local=1).select_device("cuda") == "cuda:1"
    assert Ranks(5, 8, local=1).select_device("cpu") == "cpu"
    assert Ranks().select_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match=r"has no GPU: it has 2"):
        Ranks(2, 8, local=2).select_device("cuda")
    with pytest.raises(UserError, match=r"expected cuda or cpu for 8 processes, got cuda:1"):
        Ranks(0, 8).select_device("cuda:1")
