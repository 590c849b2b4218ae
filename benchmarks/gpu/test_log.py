"""A pytest plugin: a line of JSON for every test as it ends, so that a stopped run loses none."""

import json
import os
from pathlib import Path
from typing import Any

FILE_VARIABLE = "M3D_FAST_TEST_LOG"  # environment variable that names the file
TAIL = 6000  # characters of a traceback, and of what the test printed


def pytest_runtest_logreport(report: Any) -> None:
    """Append the outcome of a test; of one that failed, its traceback and output too."""
    # the processes of pytest-xdist report to the first one, which writes for all
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.failed:
        line |= {"traceback": report.longreprtext[-TAIL:], "stderr": report.capstderr[-TAIL:]}
    with Path(os.environ[FILE_VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the file; none if no test has ended."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
