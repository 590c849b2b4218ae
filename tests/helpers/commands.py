"""Run the command lines as a user does, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from m3d_fast import CondenseConfig, condense

from .sources import ROOT

PATIENCE = 300  # seconds for any process; a busy machine needs most of them


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(module: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", f"m3d_fast.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def run(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    process = start(module, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute as the processes above do, to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resume_here(out: Path) -> None:
    """Resume a run in this process, which saves the seconds that a new one takes to start."""
    with one_thread():
        condense(CondenseConfig(out=str(out)), resume=True)


def condense_digits(out: Path, *more: str) -> list[str]:
    """Arguments of a condensation of some seconds."""
    fixed = {
        "--dataset": "digits",
        "--iterations": "12",
        "--real-batch": "8",
        "--log-every": "2",
        "--checkpoint-every": "3",
        "--out": str(out),
        "--device": "cpu",
    }
    return [*(word for pair in fixed.items() for word in pair), *more]


def start_ranks(count: int, module: str, *arguments: str) -> "subprocess.Popen[str]":
    """``torchrun --nproc-per-node COUNT -m m3d_fast.MODULE``, in a process group of its own."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, "-m", f"m3d_fast.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def run_ranks(count: int, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    process = start_ranks(count, module, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
