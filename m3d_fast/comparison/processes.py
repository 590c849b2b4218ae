"""A run in a process of its own, so that its peak memory is its own."""

import contextlib
import os
import subprocess
import sys

from ..command_line import to_arguments
from ..common.commands import DONE, INTERRUPTED
from ..common.errors import UserError
from ..common.signals import Interrupted, stop_signals
from ..config import CondenseConfig

# a run ends with the command that started it, however that ended: it can then be resumed at once
_START = (
    "import runpy\n"
    "from m3d_fast.common.processes import end_with_parent\n"
    "end_with_parent()\n"
    "runpy.run_module('m3d_fast.condense', run_name='__main__', alter_sys=True)\n"
)
_POLL_SECONDS = 0.2
_STDERR = 2  # file descriptor; standard output is left to the table


def condense_alone(label: str, config: CondenseConfig) -> None:
    """Run ``python -m m3d_fast.condense --resume``; its messages are printed.

    Args:
        label: of the method, for messages.
        config: settings of the run.

    Raises:
        UserError: if it fails.
        Interrupted: after Ctrl-C or SIGTERM, when it has saved its checkpoint.
    """
    command = [sys.executable, "-c", _START, *to_arguments(config), "--resume"]
    with stop_signals() as stop_requested:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0,  # Ctrl-C reaches this process alone, which passes it on once
        )
        try:
            while process.poll() is None and not stop_requested():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
            if process.poll() is None:
                process.terminate()
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
        stopped = stop_requested()
    if stopped or status == INTERRUPTED:
        raise Interrupted("interrupted; the same command goes on from here")
    if status != DONE:
        raise UserError(f"{label}: {_explain(status)}")


def _explain(status: int) -> str:
    if status < 0:
        return (
            f"its run was ended by signal {-status}, often for lack of memory; the same command "
            f"goes on from its last checkpoint"
        )
    return f"its run ended with status {status}, its message is above"
