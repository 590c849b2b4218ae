"""A pytest plugin: a line of JSON for every test as it ends, so that a stopped run loses none."""

import json
import os
from pathlib import Path
from typing import Any

FILE_VARIABLE = "M3D_FAST_TEST_LOG"  # environment variable that names the file
TAIL = 6000  # characters of a traceback, and of what the test printed


class LogWriter:
    """Appends the outcome of every test to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the outcome of a test; of one that failed, its traceback and output too."""
        if report.when != "call" and report.passed:
            return
        line = {"test": report.nodeid, "outcome": report.outcome}
        line["seconds"] = round(report.duration, 3)
        if report.failed:
            line |= {"traceback": report.longreprtext[-TAIL:], "stderr": report.capstderr[-TAIL:]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: Any) -> None:
    """Log the tests of this run; workers of pytest-xdist report to the process that does."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LogWriter(Path(os.environ[FILE_VARIABLE])))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the file; none if no test has ended."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
