"""This process among those that torchrun started, and after the one that started it."""

import ctypes
import os
import signal
import sys

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def rank_of_process() -> int:
    """The rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def processes_on_machine() -> int:
    """The number of processes that torchrun started on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Deliver the signal to this process when its parent ends in any way (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(number))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
