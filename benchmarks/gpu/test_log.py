"""A pytest plugin: a record for every test as it ends, so that a stopped run loses none.

A test that was begun in an earlier process of the same job is left out: that process died in it, or
after it. A process whose device is lost ends, because every later test would fail.
"""

import os
import sys
from typing import Any

from benchmarks.gpu import records

LOST = 70  # exit status of a process whose device is lost


class Selection:
    """Leaves out the tests that earlier attempts at this job had begun."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Select in every process of pytest-xdist alike."""
        begun = records.find_begun()
        items[:] = [item for item in items if item.nodeid not in begun]


class LogWriter:
    """Appends the beginning and the outcome of every test to the records."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Name the test that is running."""
        records.append({"kind": "start", "name": nodeid})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the outcome of a test; of one that failed, its traceback and output too."""
        if report.when != "call" and report.passed:
            return
        line = {"kind": "test", "name": report.nodeid, "outcome": report.outcome}
        line["seconds"] = round(report.duration, 3)
        if report.failed:
            line["traceback"] = report.longreprtext[-records.TAIL :]
            line["stderr"] = report.capstderr[-records.TAIL :]
        records.append(line)


class DeviceGuard:
    """Ends a process whose CUDA device is lost: after an illegal access nothing works."""

    failed = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Notice a failure."""
        self.failed |= report.failed

    def pytest_runtest_logfinish(self) -> None:
        """After a failure, ask the device."""
        if self.failed and is_device_lost():
            os._exit(LOST)
        self.failed = False


def is_device_lost() -> bool:
    """Whether this process uses CUDA and can no longer."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    # torch raises RuntimeError or a class of its own, by version; any means the same
    except Exception:
        return True
    return False


def pytest_configure(config: Any) -> None:
    """Log the tests of this run; workers of pytest-xdist report to the process that does."""
    config.pluginmanager.register(Selection())
    config.pluginmanager.register(DeviceGuard())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LogWriter())
