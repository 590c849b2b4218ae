"""``make gpu`` keeps its time: what runs then is stopped, and what was measured is kept."""

import os
import sys
import time

import pytest

from benchmarks import gpu

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
