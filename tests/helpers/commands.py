"""Run the command lines as a user does, in this process or in one of their own."""

import importlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

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


def run_process(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own, which takes seconds to import torch."""
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


@contextmanager
def _own_logging() -> Iterator[None]:
    """Set aside the handlers of this process: a command closes and replaces those it finds."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def run(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command in this process: what it prints, and its exit status."""
    command = [f"python -m m3d_fast.{module}", *arguments]
    main = importlib.import_module(f"m3d_fast.{module}").main
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        redirect_stdout(out),
        redirect_stderr(err),
        _own_logging(),
        one_thread(),
    ):
        try:
            status = main()
        except SystemExit as left:  # the parser's
            status = left.code
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


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


def finish_run(out: Path, *more: str) -> Path:
    """A complete run of :func:`condense_digits`."""
    done = run("condense", *condense_digits(out, *more))
    assert done.returncode == 0, done.stderr
    return out


def start_ranks(count: int, module: str, *arguments: str) -> "subprocess.Popen[str]":
    """``torchrun --nproc-per-node COUNT -m MODULE``, in a process group of its own."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, "-m", module, *arguments],
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


def wait_for(path: Path, seconds: float = PATIENCE) -> None:
    """Wait until there is a file of this name, which may be a pattern."""
    end = time.monotonic() + seconds
    while not any(path.parent.glob(path.name)):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.002)


def same_result(out: Path, expected: Path) -> None:
    """Assert that two runs have the same condensed set and losses, each iteration once."""
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (expected / name).read_bytes()
    seen, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (out, expected)
    )
    losses = {line["iteration"]: line["loss"] for line in seen}
    assert sorted(losses) == [line["iteration"] for line in seen], "no line twice"
    assert losses == {line["iteration"]: line["loss"] for line in wanted}
