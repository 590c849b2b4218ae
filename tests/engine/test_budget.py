"""A time budget: seconds of iterations, counted on when a run is resumed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from m3d_fast import CondenseConfig, SyntheticSet, condense
from m3d_fast.common.errors import UserError
from m3d_fast.engine import loop, metrics
from m3d_fast.engine.condenser import Condenser


class Killed(Exception):
    pass


class Clock:
    """A clock by which every iteration takes one second; it can end the run in one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.kill_at = 100.0, 0.0
        step = Condenser.step

        def timed(condenser: Condenser, *arguments, **named):
            self.now += 1
            if self.now == self.kill_at:
                raise Killed
            return step(condenser, *arguments, **named)

        monkeypatch.setattr(Condenser, "step", timed)
        for module in (loop, metrics):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def settings(out: Path, **given) -> CondenseConfig:
    fixed = {"dataset": "digits", "real_batch": 4, "device": "cpu", "precision": "fp32"}
    fixed |= {"log_every": 2, "checkpoint_every": 2, "budget": 5.0, "out": str(out)}
    return CondenseConfig(**(fixed | given))


def iterations(out: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in read_lines(out)]


def read_lines(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def test_a_run_stops_when_its_time_is_spent(tmp_path: Path, clock: Clock) -> None:
    condensed = condense(settings(tmp_path / "budget"))
    assert condensed.info["iterations"] == 5
    assert iterations(tmp_path / "budget") == [2, 4, 5]
    config = json.loads((tmp_path / "budget" / "config.json").read_text())["settings"]
    assert (config["budget"], config["iterations"]) == (5.0, 200)
    counted = condense(settings(tmp_path / "counted", budget=None, iterations=5))
    assert (condensed.images == counted.images).all()


def test_compiling_is_not_counted(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(condenser: Condenser) -> float:
        clock.now += 50
        return 1.0

    monkeypatch.setattr(Condenser, "seconds_per_iteration", warm_up)
    assert condense(settings(tmp_path)).info["iterations"] == 5
    assert sum(json.loads(line)["seconds"] for line in read_lines(tmp_path)) == 5


def test_seconds_before_a_resumption_count(tmp_path: Path, clock: Clock) -> None:
    out = tmp_path / "run"
    clock.kill_at = clock.now + 4  # two iterations are in the checkpoint, and two seconds
    with pytest.raises(Killed):
        condense(settings(out))
    clock.now += 1000  # between the two runs nothing is spent
    resumed = condense(CondenseConfig(out=str(out)), resume=True)
    assert resumed.info["iterations"] == 5
    straight = condense(settings(tmp_path / "straight"))
    assert (resumed.images == straight.images).all()


def test_a_run_that_spent_its_time_resumes_to_itself(tmp_path: Path, clock: Clock) -> None:
    condense(settings(tmp_path))
    before = (tmp_path / "synthetic.safetensors").read_bytes()
    condense(CondenseConfig(out=str(tmp_path)), resume=True)
    assert (tmp_path / "synthetic.safetensors").read_bytes() == before
    assert iterations(tmp_path) == [2, 4, 5]


def test_iterations_end_a_run_within_its_budget(tmp_path: Path, clock: Clock) -> None:
    assert condense(settings(tmp_path, iterations=3)).info["iterations"] == 3
    assert isinstance(SyntheticSet.load(tmp_path / "synthetic.safetensors"), SyntheticSet)


def test_a_budget_is_above_zero(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget: expected a number above 0, got -3"):
        condense(settings(tmp_path / "run", budget=-3.0))
    assert not (tmp_path / "run").exists()
