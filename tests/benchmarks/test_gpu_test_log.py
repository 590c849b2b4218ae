"""The records of tests survive whatever ends the process that runs them."""

import pytest

from benchmarks.gpu import job_list, records, runner, test_log
from benchmarks.gpu.job_list import Job
from tests.helpers.commands import PATIENCE

TESTS = """
import os, sys, pytest
def test_good(): pass
def test_bad():
    print("the compiler said no", file=sys.stderr)
    raise MemoryError("out of registers")
@pytest.fixture
def broken(): raise OSError("no device")
def test_unprepared(broken): pass
def test_deadly():
    if "DEADLY" in os.environ: os.kill(os.getpid(), 9)
def test_last(): pass
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the tests above as ``make gpu`` runs its own; the visit's records."""
    (tmp_path / "test_it.py").write_text(TESTS)

    def run_tests(*, xdist: bool) -> list[dict]:
        monkeypatch.setattr(job_list, "is_installed", lambda name: xdist and name == "xdist")
        (model, *_) = job_list._test_jobs(("small",))
        selected = model.command.index("tests/kernels/triton")
        command = (*model.command[:selected], "-p", "no:benchmark", str(tmp_path / "test_it.py"))
        settings = {"environment": model.environment, "ended": model.ended}
        job = Job(name="t", group="t", command=command, seconds=PATIENCE, restarts=3, **settings)
        visit = runner.Visit(tmp_path, PATIENCE)
        visit.run([job])
        return records.read(visit.file)

    return run_tests


def find_outcomes(lines: list[dict]) -> dict[str, str]:
    return {
        line["name"].split("::")[1]: line["outcome"] for line in lines if line["kind"] == "test"
    }


OUTCOMES = {"test_good": "passed", "test_bad": "failed", "test_unprepared": "failed"}


@pytest.mark.parametrize("killed", [False, True])
def test_failures_are_kept_with_their_tracebacks_and_a_killed_run_goes_on(killed, run, monkeypatch):
    if killed:
        monkeypatch.setenv("DEADLY", "yes")
    lines = run(xdist=False)
    assert [line["status"] for line in lines if line["kind"] == "job"] == [-9, 0] if killed else [1]
    deadly = {} if killed else {"test_deadly": "passed"}
    assert find_outcomes(lines) == OUTCOMES | deadly | {"test_last": "passed"}
    bad, unprepared = (line for line in lines if line.get("outcome") == "failed")
    assert "MemoryError: out of registers" in bad["traceback"]
    assert "the compiler said no" in bad["stderr"]
    assert "OSError: no device" in unprepared["traceback"]
    unended = [line["name"].split("::")[1] for line in records.find_unended(lines)]
    assert unended == (["test_deadly"] if killed else [])


def test_one_record_for_each_test_among_several_processes(run):
    pytest.importorskip("xdist")
    lines = run(xdist=True)
    assert find_outcomes(lines) == OUTCOMES | {"test_deadly": "passed", "test_last": "passed"}
    assert len([line for line in lines if line["kind"] == "test"]) == 5


class Cuda:
    """Stands in for ``torch.cuda``."""

    def __init__(self, *, used: bool, lost: bool) -> None:
        self.used, self.lost = used, lost

    def is_initialized(self) -> bool:
        return self.used

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("used", "lost", "expected"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_lost_device_is_noticed(used, lost, expected, monkeypatch):
    torch = type("Torch", (), {"cuda": Cuda(used=used, lost=lost)})
    monkeypatch.setitem(test_log.sys.modules, "torch", torch)
    assert test_log.is_device_lost() is expected


@pytest.mark.parametrize(("failed", "lost"), [(True, True), (True, False), (False, True)])
def test_a_process_ends_after_a_failure_that_lost_the_device(failed, lost, monkeypatch):
    statuses = []
    monkeypatch.setattr(test_log, "is_device_lost", lambda: lost)
    monkeypatch.setattr(test_log.os, "_exit", statuses.append)
    guard = test_log.DeviceGuard()
    guard.pytest_runtest_logreport(type("Report", (), {"failed": failed}))
    guard.pytest_runtest_logfinish()
    assert statuses == ([test_log.LOST] if failed and lost else [])
    assert test_log.LOST not in job_list.PYTEST_ENDED, "so the job is started again"
