"""``make gpu`` keeps its time: what runs then is stopped, and what was measured is kept.

And it times nothing that is wrong.
"""

import json
import os
import sys
import time

import pytest
import torch

from benchmarks.gpu import runner as gpu
from benchmarks.gpu import suites as gpu_suites
from benchmarks.gpu.timing import Measured, record
from m3d_fast.kernels import KID

CHILD = """
import subprocess, sys
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
child.wait()
"""


def test_what_runs_too_long_is_stopped_with_its_children():
    started = time.monotonic()
    output, status = gpu.bounded([sys.executable, "-c", CHILD], 2.0)
    assert status is None
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 10
    while _runs(int(output)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(int(output))


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_ends_in_time_gives_its_output_and_status():
    code = "import os, sys; print(os.environ['SAID']); sys.exit(3)"
    assert gpu.bounded([sys.executable, "-c", code], 60.0, SAID="yes") == ("yes\n", 3)
    assert "SAID" not in os.environ


RECORD = '{"name": "one", "extra_info": {"median_seconds": {}}}\n'


@pytest.mark.parametrize(
    ("status", "names", "finished"),
    [(0, ["one"], True), (None, ["one"], False), (1, ["one", "kid: stopped"], True)],
    ids=["finished", "cut short", "failed"],
)
def test_records_of_a_suite_are_kept_as_far_as_it_came(status, names, finished, monkeypatch):
    output = "a compiler's chatter\n" + RECORD + ('{"na' if status is None else "")
    monkeypatch.setattr(gpu, "bounded", lambda command, seconds: (output, status))
    records, done = gpu.timed("kid", 1.0)
    assert [record["name"] for record in records] == names
    assert done is finished
    assert all("error" in record["extra_info"] for record in records[1:])


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """As if there were one, with a clock that suites move: what each was given, what it took."""
    clock, given, takes = [0.0], {}, {}

    def suite(name: str, seconds: float) -> tuple[list, bool]:
        given[name] = seconds
        clock[0] += min(seconds, takes.get(name, 1.0))
        return [], takes.get(name, 1.0) <= seconds

    for function in ("tested", "timed"):
        monkeypatch.setattr(gpu, function, suite)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu, "described", dict)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Chip")
    return given, takes, tmp_path / "benchmarks/results/a-chip"


def run(monkeypatch, *named: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *named])
    return gpu.main()


def test_no_suite_takes_more_than_its_share_and_all_end_in_time(on_a_gpu, monkeypatch):
    given, takes, folder = on_a_gpu
    takes |= dict.fromkeys(gpu.BUDGETS, 1000.0)
    assert run(monkeypatch) == 0
    assert list(given) == list(gpu.BUDGETS)
    assert all(seconds <= gpu.BUDGETS[name] for name, seconds in given.items())
    assert sum(given.values()) == gpu.BUDGET < 480
    for name in gpu.BUDGETS:
        assert json.loads((folder / f"{name}.json").read_text())["cut_short"].startswith(name)


def test_named_suites_share_all_the_time(on_a_gpu, monkeypatch):
    given, takes, folder = on_a_gpu
    takes["engine"] = 300.0
    assert run(monkeypatch, "engine", "kid") == 0
    assert given == {"engine": gpu.BUDGET, "kid": gpu.BUDGET - 300.0}
    assert "cut_short" not in json.loads((folder / "engine.json").read_text())


def test_a_suite_that_is_none_is_named(on_a_gpu, monkeypatch, capsys):
    assert run(monkeypatch, "kids") == 2
    assert "no suite kids: expected some of tests, gradient," in capsys.readouterr().err


def test_every_test_that_needs_a_gpu_is_run():
    assert gpu.selection("gpu_tests")[2:] == [
        "tests/loaders/test_streamed.py",
        "tests/test_condenser.py",
    ]
    assert gpu.selection("tests")[0] == "tests/kernels"


@pytest.mark.parametrize("error", [0.2, torch.nan])
def test_what_is_wrong_is_not_timed(error):
    def never() -> float:
        raise AssertionError("timed")

    content = record("case", {"bad": Measured(never, lambda: error, 0.1)})["extra_info"]
    assert content["median_seconds"] == {}
    assert "expected less than 1.0e-01" in content["error"]["bad"]
    content = record("case", {"good": Measured(lambda: 2.0, lambda: 0.05, 0.1)})["extra_info"]
    assert content["median_seconds"] == {"good": 2.0}
    assert "error" not in content


@pytest.mark.parametrize("wrong", [False, True])
def test_kid_is_proven_before_it_is_timed(wrong, monkeypatch):
    monkeypatch.setattr(gpu_suites, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_suites, "KID_SHAPE", (3, 20, 8))
    monkeypatch.setattr(gpu_suites, "eager", lambda calls, rounds: 1.0)
    if wrong:
        right = KID.compute
        monkeypatch.setattr(KID, "compute", lambda self: right(self)._replace(mean=torch.ones(())))
    ours = gpu_suites._kid_of_libraries()["extra_info"]
    assert ("m3d_fast" in ours["median_seconds"]) is not wrong
    assert ("error" in ours) is wrong
