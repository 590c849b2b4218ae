"""What does not fit is refused before any work; a long run logs an estimate after a warm-up."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from m3d_fast import CondenseConfig, condense
from m3d_fast.common.errors import UserError
from m3d_fast.distributed import Ranks
from m3d_fast.engine import estimate
from m3d_fast.engine.condenser import Condenser
from m3d_fast.engine.estimate import RunEstimate, required_disk_bytes
from m3d_fast.engine.iteration import IterationResult
from m3d_fast.loaders import open_dataset
from m3d_fast.run.folder import RunFolder


def small_run(tmp_path: Path, **given) -> CondenseConfig:
    fixed = {"dataset": "digits", "iterations": 8, "real_batch": 8, "device": "cpu"}
    return CondenseConfig(**(fixed | {"out": str(tmp_path / "run")} | given))


def test_disk_is_that_of_two_checkpoints(tmp_path: Path) -> None:
    config = small_run(tmp_path, ipc=3)
    numbers = 10 * 3 * 16 * 16
    assert required_disk_bytes(config.resolve(), open_dataset("digits")) == 2 * 2 * 4 * numbers
    condense(config)
    state = (tmp_path / "run" / "checkpoint.safetensors").stat().st_size
    assert 0 < state - 2 * 4 * numbers < 2000, "header and sampler aside"


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch) -> None:
    usage = SimpleNamespace(free=30_000)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"run: 0\.00 GB are needed.*--out on a larger disk"):
        condense(small_run(tmp_path))
    assert not (tmp_path / "run").exists()
    usage.free = 41_000
    condense(small_run(tmp_path))
    usage.free = 25_000
    condense(small_run(tmp_path), resume=True)  # its own checkpoint counts as free


def test_memory_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda device: 20_000)
    with pytest.raises(UserError, match=r"pixels and momentum take 0\.00 GB of memory"):
        condense(small_run(tmp_path))


def observe_run(tmp_path: Path, caplog: pytest.LogCaptureFixture, iterations: int) -> list[str]:
    config = small_run(tmp_path, iterations=iterations).resolve()
    condenser = Condenser(config, open_dataset("digits"))
    run_estimate = RunEstimate(condenser, RunFolder(config.out), Ranks(), first=10)
    with caplog.at_level(logging.INFO, "m3d_fast"), pytest.MonkeyPatch.context() as patch:
        for done in range(11, 40):
            # 100 s while compiling, then 3 s each, 0.6 s of them for the loader
            seconds = 100 * (done - 10) if done < 12 else 200 + 3 * (done - 12)
            patch.setattr(estimate.time, "perf_counter", lambda seconds=seconds: seconds)
            result = IterationResult(None, torch.ones(10, dtype=torch.bool), 0.6)
            run_estimate.observe(done, result)
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("estimate:")]


def test_long_runs_log_hours_loader_memory_and_disk(tmp_path, caplog) -> None:
    lines = observe_run(tmp_path, caplog, 4815)
    assert len(lines) == 3
    assert lines[0] == "estimate: 4.0 h for 4,800 iterations of 3 s"
    # 80 real images in 3 s, in 2.4 s without waiting
    assert "33 real images/s needed, 27 delivered, 20 % of the time" in lines[1]
    assert "more --workers or --cache host would help" in lines[1]
    assert "GB of memory per device, 0.00 GB of disk" in lines[2]


def test_short_runs_are_quiet(tmp_path, caplog) -> None:
    assert observe_run(tmp_path, caplog, 100) == []
