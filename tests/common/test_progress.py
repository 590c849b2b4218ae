"""What progress says of speed and time left."""

import io
import logging
import sys

import pytest

from m3d_fast.common import progress as module
from m3d_fast.common.progress import Progress, ProgressTable


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: False, raising=False)
    return now


def test_the_time_left_leaves_the_first_steps_out(clock: list[float], caplog) -> None:
    """They compile: 20 s for one step, then a second each."""
    with caplog.at_level(logging.INFO, "m3d_fast"):
        progress = Progress("train", 100, images_per_step=4)
        for step in range(1, 101):
            clock[0] += 20 if step == 1 else 1
            progress.update(step, "loss 0.1")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "train 1/100, loss 0.1", "nothing is known yet"
    assert lines[1] == "train 11/100, loss 0.1, 4 images/s, 89 s left"
    assert lines[-1] == "train 100/100, loss 0.1, 4 images/s, 0 s left"


def test_a_resumed_run_counts_its_own_steps(clock: list[float], caplog) -> None:
    with caplog.at_level(logging.INFO, "m3d_fast"):
        progress = Progress("train", 50, done=40)
        for step, seconds in ((41, 30), (42, 10), (50, 80)):
            clock[0] += seconds
            progress.update(step)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "train 41/50",
        "train 42/50, 0 images/s, 80 s left",
        "train 50/50, 0 images/s, 0 s left",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_line_for_every_row_and_one_for_all(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressTable("evaluate", {"dm, convnet3": 10, "m3d, convnet3": 30}) as progress:
        progress.advance("m3d, convnet3", 15)
        progress.status = "1 of 4 networks"
        progress.note("m3d, convnet3", "79.32 % of 1")
        progress.advance("dm, convnet3", 10)
    shown = terminal.getvalue()
    assert "dm, convnet3  100%" in shown
    assert "m3d, convnet3  50%" in shown
    assert "| 79.32 % of 1" in shown
    assert "| 25/40, 1 of 4 networks, " in shown
    assert "s left" in shown


def test_without_a_terminal_rows_are_one_line_of_the_log(clock: list[float], caplog) -> None:
    with (
        caplog.at_level(logging.INFO, "m3d_fast"),
        ProgressTable("evaluate", {"dm": 20, "m3d": 20}) as progress,
    ):
        for row in ("dm", "m3d") * 20:
            clock[0] += 1
            progress.advance(row, 1)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "evaluate 10/40, 1 images/s, 30 s left"
    assert [line.split(",")[0] for line in lines[1:]] == [f"evaluate {n}/40" for n in (20, 30, 40)]
