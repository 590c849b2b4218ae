"""Progress with speed and time left: a live line on a terminal, else a log line at intervals."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

log = logging.getLogger("m3d_fast")

PLAIN_SECONDS = 10.0  # between log lines where there is no terminal


class Progress:
    """The progress of long work.

    Args:
        label: what is being done.
        total: steps in all.
        done: steps already behind us (a resumed run).
        images_per_step: to show images per second.
        bar: whether a terminal gets a live line; of several ranks one draws it.
        last_line: whether the end is logged too where there is no terminal.
        line: of the terminal, counted from the first of several live ones.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done: int = 0,
        images_per_step: int = 1,
        bar: bool = True,
        last_line: bool = True,
        line: int = 0,
    ) -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._images, self._last_line = images_per_step, last_line
        self._start = self._shown = time.monotonic()
        # the first steps compile, allocate and start processes: the rate is that of the later ones
        self._steady: tuple[float, int] | None = None  # when they began, and after which step
        self._bar: Any = None  # a tqdm
        if bar and sys.stderr.isatty():
            from tqdm import tqdm  # the op needs torch alone

            # tqdm begins a postfix with a comma
            layout = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(
                desc=label,
                total=total,
                initial=done,
                bar_format=layout,
                dynamic_ncols=True,
                position=line,
            )

    def update(self, done: int, status: str = "") -> None:
        """Show that ``done`` steps are finished, and ``status``, such as ``loss 0.123``."""
        now = time.monotonic()
        parts = [part for part in (status, *self._describe_speed(done, now)) if part]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(done - self._done)
        elif (done == self._total and self._last_line) or (
            done > self._first and now - self._shown >= PLAIN_SECONDS
        ):
            log.info("%s", ", ".join([f"{self._label} {done}/{self._total}", *parts]))
            self._shown = now
        if self._steady is None and done > self._first:
            self._steady = now, done
        self._done = done

    def _describe_speed(self, done: int, now: float) -> list[str]:
        """Images per second and time left; nothing while only the first steps are known."""
        start, first = self._steady or (self._start, self._first)
        if self._steady is None and done < self._total:
            return []
        rate = (done - first) / max(now - start, 1e-9)
        left = (self._total - done) / max(rate, 1e-9)
        return [f"{rate * self._images:,.0f} images/s", f"{left:.0f} s left"]

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


class ProgressTable:
    """The progress of long work in rows: live lines on a terminal, else that of all in the log.

    Args:
        label: what is being done.
        totals: steps of every row, by its name.
        bar: as of :class:`Progress`.
    """

    def __init__(self, label: str, totals: Mapping[str, int], *, bar: bool = True) -> None:
        self.status = ""  # of all, shown with their progress
        self._done = dict.fromkeys(totals, 0.0)
        self._bars: dict[str, Any] = {}
        self._stack = ExitStack()
        if bar and sys.stderr.isatty():
            from tqdm import tqdm  # the op needs torch alone
            from tqdm.contrib.logging import logging_redirect_tqdm

            # lines of the log are printed above the live ones, not into them
            self._stack.enter_context(logging_redirect_tqdm())
            width = max((len(name) for name in totals), default=0)
            layout = "{desc} {percentage:3.0f}% |{bar:24}| {unit}"
            for line, (name, total) in enumerate(totals.items()):
                self._bars[name] = tqdm(
                    desc=name.ljust(width), total=total, bar_format=layout, position=line, unit=""
                )
        total = sum(totals.values())
        self._all = Progress(label, total, bar=bar, last_line=False, line=len(totals))

    def advance(self, row: str, steps: float) -> None:
        """Show that so many more steps of a row are finished."""
        self._done[row] += steps
        if row in self._bars:
            self._bars[row].update(steps)
        self._show_all()

    def note(self, row: str, text: str) -> None:
        """Show a row's figure, such as an accuracy."""
        if row in self._bars:
            self._bars[row].unit = text
            self._bars[row].refresh()
        self._show_all()

    def _show_all(self) -> None:
        self._all.update(round(sum(self._done.values())), self.status)

    def __enter__(self) -> "ProgressTable":
        return self

    def __exit__(self, *error: object) -> None:
        for bar in self._bars.values():
            bar.close()
        self._all.__exit__(*error)
        self._stack.close()
