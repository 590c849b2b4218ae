"""Ctrl-C and SIGTERM, deferred until a loop has a consistent state to save."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM after saving; the message says how to resume."""


@contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C or SIGTERM has arrived; a second signal kills.

    Args:
        patient: ignore further signals instead: torchrun forwards a signal that its processes have
            already received, and kills those that take too long.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def record(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for each in before:
            signal.signal(each, signal.SIG_IGN if patient else signal.SIG_DFL)

    for number in before:
        signal.signal(number, record)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
