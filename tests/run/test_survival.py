"""Kill, interrupt, resume: the bytes are those of a run that never stopped."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from m3d_fast import CondenseConfig, EvaluateConfig, condense, evaluate
from m3d_fast.common.errors import UserError
from m3d_fast.engine.sources import queue
from m3d_fast.run.checkpoint import Checkpoints, CheckpointWriter
from m3d_fast.run.folder import resolve_resumed_config
from m3d_fast.run.lock import FolderLock
from tests.helpers.commands import (
    PATIENCE,
    condense_digits,
    environment,
    finish_run,
    one_thread,
    resume_here,
    run,
    same_result,
    start,
    wait_for,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped."""
    return finish_run(tmp_path_factory.mktemp("straight") / "run")


def test_the_run_folder_is_complete(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "synthetic.safetensors",
        "metrics.jsonl",
        "tensorboard",
        "checkpoint.safetensors",
        "grid.png",
        "grid_decoded.png",
    }
    content = json.loads((straight / "config.json").read_text())
    assert content["settings"]["dataset"] == "digits"
    assert content["settings"]["lr_img"] == 1.0, "presets are written out"
    assert content["environment"]["versions"]["torch"]
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert any((straight / "tensorboard").iterdir())


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run that was killed as soon as a file was there."""

    @cache
    def when(moment: str) -> Path:
        out = tmp_path_factory.mktemp("killed") / "run"
        process = start("condense", *condense_digits(out))
        wait_for(out / moment)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        return out

    return when


@pytest.mark.parametrize(
    "moment",
    ["config.json", "metrics.jsonl", "checkpoint.safetensors"],
)
def test_killed_and_resumed_ends_with_the_same_bytes(
    moment: str, straight, killed, tmp_path
) -> None:
    out = shutil.copytree(killed(moment), tmp_path / "run")
    resume_here(out)
    same_result(out, straight)


def test_killed_while_writing_ends_with_the_same_bytes(straight, killed, tmp_path) -> None:
    """What a kill leaves in the middle of any write: half files beside whole ones."""
    out = shutil.copytree(killed("checkpoint.safetensors"), tmp_path / "run")
    checkpoint = (out / "checkpoint.safetensors").read_bytes()
    (out / ".checkpoint.safetensors.part").write_bytes(checkpoint[: len(checkpoint) // 2])
    (out / ".synthetic.safetensors.part").write_bytes(b"")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "lo')
    resume_here(out)
    same_result(out, straight)


QUEUE = ("--networks-from", "queue", "--real-batch", "4", "--no-compile", "--precision", "fp32")
# the queue of a run that takes seconds: a script, as its sizes are no settings
SMALL_QUEUE = """
import sys
from m3d_fast.engine.sources import queue
queue.BATCH, queue.STEPS, queue.iterations_per_network = 8, 2, lambda ipc: 4
from m3d_fast.condense import main
sys.exit(main())
"""


@pytest.fixture
def _small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "BATCH", 8)
    monkeypatch.setattr(queue, "STEPS", 2)
    monkeypatch.setattr(queue, "iterations_per_network", lambda ipc: 4)


@pytest.mark.usefixtures("_small_queue")
def test_networks_of_a_killed_run_are_those_of_one_that_was_not(tmp_path: Path) -> None:
    killed, expected = tmp_path / "killed", tmp_path / "straight"
    command = [sys.executable, "-c", SMALL_QUEUE, *condense_digits(killed, *QUEUE)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    wait_for(killed / "checkpoint.safetensors")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "synthetic.safetensors").exists()
    resume_here(killed)
    with one_thread():
        settings = json.loads((killed / "config.json").read_text())["settings"]
        condense(CondenseConfig(**(settings | {"out": str(expected)})))
    same_result(killed, expected)
    name = "checkpoint.safetensors"
    assert (killed / name).read_bytes() == (expected / name).read_bytes(), "networks included"


# long enough that a signal sent after the second iteration finds it at work
LONGER = ("--iterations", "24", "--checkpoint-every", "1000", "--real-batch", "16")


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_run(tmp_path_factory.mktemp("longer") / "run", *LONGER)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_says_how_to_go_on_and_goes_on(number, longer, tmp_path) -> None:
    out = tmp_path / "run"
    process = start("condense", *condense_digits(out, *LONGER))
    wait_for(out / "metrics.jsonl")
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert f"python -m m3d_fast.condense --out {out} --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "synthetic.safetensors").exists()
    resume_here(out)
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (longer / name).read_bytes()


def test_resume_of_nothing_starts_and_of_a_finished_run_changes_nothing(straight, tmp_path) -> None:
    out = tmp_path / "run"
    done = run("condense", *condense_digits(out, "--resume"))
    assert done.returncode == 0, done.stderr
    same_result(out, straight)
    resume_here(out)
    same_result(out, straight)


def test_a_run_moved_elsewhere_can_be_resumed(straight, tmp_path) -> None:
    out = tmp_path / "moved"
    shutil.copytree(straight, out)
    (out / "synthetic.safetensors").unlink()
    done = run("condense", "--out", str(out), "--resume")
    assert done.returncode == 0, done.stderr
    same_result(out, straight)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_from_its_checkpoint(
    longer: Path, small_disk: Path
) -> None:
    out = small_disk / "run"
    process = start("condense", *condense_digits(out, *LONGER, "--checkpoint-every", "2"))
    wait_for(out / "checkpoint.safetensors")
    filler = small_disk / "filler"
    filled = subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True)
    assert filled.returncode != 0, "until nothing fits any more"
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert "cannot be written (No space left on device)" in last
    kept = Checkpoints(out).newest_iteration()
    assert kept is not None
    assert f"the checkpoint of iteration {kept} is kept, resume from it with --resume" in last
    assert not list(out.glob(".*.part"))
    filler.unlink()
    resume_here(out)
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (longer / name).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a tmpfs takes root: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def state(value: float, classes: int = 4) -> dict[str, torch.Tensor]:
    rows = torch.arange(classes) + value
    pixels = rows.view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 8, 8).contiguous()
    positions = torch.arange(4) * 10 + int(value)
    return {"pixels": pixels, "momentum": -pixels, "sampler.positions": positions}


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    """The quota of a process instead of a full disk: it takes no root."""
    checkpoints = Checkpoints(tmp_path)
    with CheckpointWriter(checkpoints, range(4), 4, None) as writer:
        writer.save(state(1.0), 1)
        writer.wait()
        before = (tmp_path / "checkpoint.safetensors").read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
        try:
            writer.save(state(2.0), 2)
            with pytest.raises(UserError, match=r"File too large.*of iteration 1 is kept"):
                writer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path: Path, monkeypatch) -> None:
    checkpoints, moving = Checkpoints(tmp_path), state(1.0)
    save, moved = Checkpoints.save, threading.Event()
    monkeypatch.setattr(Checkpoints, "save", lambda *given: moved.wait(10) and save(*given))
    with CheckpointWriter(checkpoints, range(4), 4, None) as writer:
        writer.save(moving, 1)
        moving["pixels"].zero_()
        moved.set()
    tensors, iteration = checkpoints.load(range(4)) or ({}, 0)
    assert iteration == 1
    assert all(torch.equal(tensors[name], value) for name, value in state(1.0).items())


def test_checkpoints_pace_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 s apart, further where one costs more than 1 % of the time; none while one is written."""
    now = [1000.0]
    monkeypatch.setattr("m3d_fast.run.checkpoint.time.monotonic", lambda: now[0])
    writer = CheckpointWriter(Checkpoints(tmp_path), range(4), 4, None)
    assert not writer.is_due()
    now[0] += 31
    assert writer.is_due()
    release = threading.Event()
    monkeypatch.setattr(Checkpoints, "save", lambda *_: release.wait(10))
    writer.save(state(1.0), 1)
    now[0] += 31
    assert not writer.is_due(), "the last one is still being written"
    release.set()
    writer.wait()
    assert writer.is_due()
    writer.cost = 2.0
    assert not writer.is_due()
    now[0] += 170
    assert writer.is_due()


def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    whole = state(3.0)
    for classes in (range(3), range(3, 4)):
        rows = {k: v if "." in k else v[classes.start : classes.stop] for k, v in whole.items()}
        checkpoints.save(rows, 5, classes, 4)
    for classes in (range(4), range(1), range(2, 4)):
        tensors, iteration = checkpoints.load(classes) or ({}, 0)
        assert iteration == 5
        assert torch.equal(tensors["pixels"], whole["pixels"][classes.start : classes.stop])
        assert torch.equal(tensors["momentum"], whole["momentum"][classes.start : classes.stop])
        assert torch.equal(tensors["sampler.positions"], whole["sampler.positions"])


def test_networks_are_the_first_shards_and_read_by_all(tmp_path: Path) -> None:
    checkpoints, weights = Checkpoints(tmp_path), torch.arange(5.0)
    networks = {"networks.weights": weights, "networks.accuracy": torch.tensor(0.5)}
    for classes in (range(3), range(3, 4)):
        whole = state(3.0)
        rows = {k: v if "." in k else v[classes.start : classes.stop] for k, v in whole.items()}
        checkpoints.save(rows | networks, 5, classes, 4)
    _, second = sorted(tmp_path.iterdir())
    assert b"networks" not in second.read_bytes(), "written once"
    for classes in (range(4), range(3, 4)):
        tensors, _ = checkpoints.load(classes) or ({}, 0)
        assert all(torch.equal(tensors[name], value) for name, value in networks.items())
        assert len(tensors["pixels"]) == len(classes)


def test_the_newest_complete_checkpoint_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load(range(4)) is None
    checkpoints.save(state(1.0), 1, range(4), 4)
    checkpoints.save(state(2.0, 2), 2, range(2), 4)  # its other half was never written
    assert checkpoints.newest_iteration() == 1
    (tmp_path / ".checkpoint-0000002-classes-0002-0004.safetensors.part").write_bytes(b"")
    checkpoints.remove_old()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    checkpoints.save(state(2.0, 2), 2, range(2), 4)
    checkpoints.save(state(4.0, 2), 2, range(2, 4), 4)
    assert checkpoints.newest_iteration() == 2
    checkpoints.remove_old()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_in_use_is_refused_by_name_and_free_after_a_kill(straight, tmp_path) -> None:
    out = tmp_path / "run"
    first = start(
        "condense", *condense_digits(out, *LONGER, "--no-compile", "--iterations", "4000")
    )
    wait_for(out / "metrics.jsonl")
    second = run("condense", "--out", str(out), "--resume")
    assert second.returncode == 2
    assert f"run folder {out} is in use by process {first.pid} on " in second.stderr
    assert first.poll() is None
    first.kill()
    first.communicate()
    lock = FolderLock(out)
    lock.acquire()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        FolderLock(out).check_free()
    lock.share()  # as the ranks of a job do
    other = FolderLock(out)
    other.share()
    lock.release()
    with pytest.raises(UserError, match="in use"):
        FolderLock(out).check_free()
    other.release()
    FolderLock(out).check_free()


def test_two_evaluations_of_a_run_are_refused(straight: Path) -> None:
    lock = FolderLock(straight)
    lock.acquire()
    with pytest.raises(UserError, match="in use"):
        evaluate(straight, EvaluateConfig(repeats=1, epochs=1, device="cpu"))
    lock.release()


def test_a_run_goes_on_elsewhere_with_what_suits_the_machine(tmp_path: Path, caplog) -> None:
    """As after a move from a GPU: other arithmetic, said, and kept on file."""
    out = tmp_path / "run"
    first = CondenseConfig(
        dataset="digits", iterations=4, real_batch=8, out=str(out), device="cpu", precision="fp32"
    )
    condense(first)
    content = json.loads((out / "config.json").read_text())
    content["settings"] |= {"device": "cuda", "precision": "bf16", "iterations": 6}
    (out / "config.json").write_text(json.dumps(content))
    resumed = resolve_resumed_config(CondenseConfig(out=str(out), device="cpu"), resume=True)
    assert (resumed.precision, resumed.compile) == (None, None), "chosen anew for the CPU"
    assert (resumed.real_batch, resumed.iterations) == (8, 6)
    with caplog.at_level("INFO", "m3d_fast"):
        condense(CondenseConfig(out=str(out), device="cpu", precision="fp32"), resume=True)
    said = "resumed with device cpu instead of cuda, precision fp32 instead of bf16"
    assert any(said in record.getMessage() for record in caplog.records)
    after = json.loads((out / "config.json").read_text())
    assert after["settings"]["device"] == "cuda"
    assert after["resumed"][0]["iteration"] == 4
    assert after["resumed"][0]["settings"] == {"device": "cpu", "precision": "fp32"}


def test_what_is_not_given_is_the_runs(straight: Path) -> None:
    given = resolve_resumed_config(CondenseConfig(out=str(straight), ipc=3), resume=True)
    assert (given.ipc, given.dataset, given.real_batch) == (3, "digits", 8)
    fresh = resolve_resumed_config(CondenseConfig(out=str(straight), ipc=3), resume=False)
    assert (fresh.dataset, fresh.real_batch) == (None, None)
