"""``make gpu`` keeps to its time limit, keeps complete records, and times correct results only."""

import json
import os
import sys
import time

import pytest
import torch

from benchmarks.gpu import runner, suites
from benchmarks.gpu.timing import Candidate, measure
from m3d_fast.kernels import KID
from tests.helpers.commands import PATIENCE

CHILD = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_command_past_its_limit_is_stopped_with_its_children():
    started = time.monotonic()
    output, status = runner.run_bounded([sys.executable, "-c", CHILD], 2.0)
    assert status is None
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 10
    while is_running(int(output)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(output))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_command_within_its_limit_gives_its_output_and_status():
    code = "import os, sys; print(os.environ['GREETING']); sys.exit(3)"
    assert runner.run_bounded([sys.executable, "-c", code], 60.0, GREETING="yes") == ("yes\n", 3)
    assert "GREETING" not in os.environ


RECORD = '{"name": "one", "extra_info": {"median_seconds": {}}}\n'


@pytest.mark.parametrize(
    ("status", "names", "finished"),
    [(0, ["one"], True), (None, ["one"], False), (1, ["one", "kid: stopped"], True)],
    ids=["finished", "cut short", "failed"],
)
def test_complete_records_of_a_suite_are_kept(status, names, finished, monkeypatch):
    output = "a compiler's chatter\n" + RECORD + ('{"na' if status is None else "")
    monkeypatch.setattr(runner, "run_bounded", lambda command, seconds: (output, status))
    records, done = runner.run_benchmarks("kid", 1.0)
    assert [record["name"] for record in records] == names
    assert done is finished
    assert all("error" in record["extra_info"] for record in records[1:])


TESTS = """
import os, sys, pytest
def test_good(): pass
def test_bad():
    print("the compiler said no", file=sys.stderr)
    raise MemoryError("out of registers")
@pytest.fixture
def broken(): raise OSError("no device")
def test_unprepared(broken): pass
def test_last():
    if "DEADLY" in os.environ: os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_failures_are_kept_with_their_tracebacks_even_of_a_killed_run(
    killed, tmp_path, monkeypatch
):
    (tmp_path / "test_it.py").write_text(TESTS)
    if killed:
        monkeypatch.setenv("DEADLY", "yes")
    monkeypatch.setattr(runner, "select_tests", lambda suite: [str(tmp_path / "test_it.py")])
    # in this order, in one process
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    ((record,), _) = runner.run_tests("tests", PATIENCE)
    info = record["extra_info"]
    assert info["status"] == (-9 if killed else 1)
    bad, unprepared = info["failed"]
    assert bad["test"].endswith("::test_bad")
    assert "MemoryError: out of registers" in bad["traceback"]
    assert "the compiler said no" in bad["stderr"]
    assert "OSError: no device" in unprepared["traceback"]
    assert info["outcomes"] == {"passed": 1 if killed else 2, "failed": 2}


def test_one_line_for_each_test_among_several_processes(tmp_path, monkeypatch):
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(TESTS)
    monkeypatch.setattr(runner, "select_tests", lambda suite: [str(tmp_path / "test_it.py")])
    ((record,), _) = runner.run_tests("tests", PATIENCE)
    assert record["extra_info"]["outcomes"] == {"passed": 2, "failed": 2}


def test_a_machine_without_git_or_driver_tools_is_described():
    assert runner.read_output(["no-such-program", "--version"]) == "unknown"
    assert runner.read_output([sys.executable, "-c", "print(' words ')"]) == "words"
    assert runner.read_output([sys.executable, "-c", "raise SystemExit(3)"]) == "unknown"


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """A fake GPU and a clock that suites advance: seconds allowed and seconds taken, by suite."""
    clock, allowed, taken = [0.0], {}, {}

    def run_fake(name: str, seconds: float) -> tuple[list, bool]:
        allowed[name] = seconds
        clock[0] += min(seconds, taken.get(name, 1.0))
        return [], taken.get(name, 1.0) <= seconds

    for function in ("run_tests", "run_benchmarks"):
        monkeypatch.setattr(runner, function, run_fake)
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(runner, "check_requirements", lambda: None)
    monkeypatch.setattr(runner, "describe_machine", dict)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Chip")
    return allowed, taken, tmp_path / "benchmarks/results/a-chip"


def run(monkeypatch, *named: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *named])
    return runner.main()


def test_no_suite_takes_more_than_its_share_and_all_end_in_time(on_a_gpu, monkeypatch):
    allowed, taken, folder = on_a_gpu
    taken |= dict.fromkeys(runner.BUDGETS, 1000.0)
    assert run(monkeypatch) == 0
    assert list(allowed) == list(runner.BUDGETS)
    assert all(seconds <= runner.BUDGETS[name] for name, seconds in allowed.items())
    assert sum(allowed.values()) == runner.BUDGET < 480
    for name in runner.BUDGETS:
        assert json.loads((folder / f"{name}.json").read_text())["cut_short"].startswith(name)


def test_named_suites_share_all_the_time(on_a_gpu, monkeypatch):
    allowed, taken, folder = on_a_gpu
    taken["engine"] = 300.0
    assert run(monkeypatch, "engine", "kid") == 0
    assert allowed == {"engine": runner.BUDGET, "kid": runner.BUDGET - 300.0}
    assert "cut_short" not in json.loads((folder / "engine.json").read_text())


def test_an_unknown_suite_is_named(on_a_gpu, monkeypatch, capsys):
    assert run(monkeypatch, "kids") == 2
    assert "no suite kids: expected some of tests, gradient," in capsys.readouterr().err


def test_every_test_that_needs_a_gpu_is_run():
    assert runner.select_tests("gpu_tests")[2:] == [
        "tests/engine/test_condenser.py",
        "tests/loaders/streaming/test_streamed.py",
    ]
    assert runner.select_tests("tests")[0] == "tests/kernels"
    assert (runner.ROOT / runner.COMPILER_TESTS).exists(), "the ignored file is still of that name"


@pytest.mark.parametrize("error", [0.2, torch.nan])
def test_a_wrong_result_is_not_timed(error):
    def never() -> float:
        raise AssertionError("timed")

    content = measure("case", {"bad": Candidate(never, lambda: error, 0.1)})["extra_info"]
    assert content["median_seconds"] == {}
    assert "expected less than 1.0e-01" in content["error"]["bad"]
    content = measure("case", {"good": Candidate(lambda: 2.0, lambda: 0.05, 0.1)})["extra_info"]
    assert content["median_seconds"] == {"good": 2.0}
    assert "error" not in content


def test_any_error_of_a_candidate_is_recorded_and_the_others_are_measured():
    class OutOfResources(Exception):
        """As Triton's: of no class that errors have in common."""

    def fail() -> float:
        raise OutOfResources("shared memory")

    good = Candidate(lambda: 2.0, lambda: 0.05, 0.1)
    candidates = {"bad": Candidate(lambda: 1.0, fail, 0.1), "good": good}
    content = measure("case", candidates)["extra_info"]
    assert content["median_seconds"] == {"good": 2.0}
    assert "OutOfResources: shared memory" in content["error"]["bad"]
    assert "in fail" in content["error"]["bad"], "the traceback says where"


@pytest.mark.parametrize("wrong", [False, True])
def test_kid_is_checked_before_it_is_timed(wrong, monkeypatch):
    monkeypatch.setattr(suites, "DEVICE", "cpu")
    monkeypatch.setattr(suites, "KID_SHAPE", (3, 20, 8))
    monkeypatch.setattr(suites, "time_eagerly", lambda calls, rounds: 1.0)
    if wrong:
        right = KID.compute
        monkeypatch.setattr(KID, "compute", lambda self: right(self)._replace(mean=torch.ones(())))
    ours = suites._measure_kid_of_libraries()["extra_info"]
    assert ("m3d_fast" in ours["median_seconds"]) is not wrong
    assert ("error" in ours) is wrong
