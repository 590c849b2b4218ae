"""Fill Triton's cache by many processes before anything is tested or timed.

    python -m benchmarks.gpu.compilation ARCHITECTURE SECONDS main|sweep|tests|tiles ...

What the launches of each part would compile is recorded without a GPU, then compiled by a process
each, so that a compiler that crashes or hangs takes one kernel along. Each is a record: registers,
bytes spilled, shared memory, seconds.
"""

import contextlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from benchmarks.gpu import records
from benchmarks.gpu.job_list import count_cores, select_triton_tests
from benchmarks.gpu.recording import Specialization, record_launches

KERNEL_SECONDS = 150.0  # the slowest known takes 26 s on a quiet core
_FORK = multiprocessing.get_context("fork")  # a child inherits the kernels, and imports nothing


def find_cuobjdump() -> str | None:
    """The program that reads a compiled kernel: Triton's, or the machine's."""
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")


def read_usage(cubin: bytes) -> dict[str, int | None]:
    """Registers, and bytes of the stack, which hold spilled registers; None if unreadable."""
    program = find_cuobjdump()
    if program is None:
        return {"registers": None, "spilled_bytes": None}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [program, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = (re.search(rf"{key}:(\d+)", usage) for key in ("REG", "STACK"))
    registers, stack = (int(match[1]) if match else None for match in found)
    return {"registers": registers, "spilled_bytes": stack}


def compile_one(work: Specialization, target: GPUTarget) -> dict[str, Any]:
    """Compile into Triton's cache, as a launch would; the record says why if it fails."""
    started = time.perf_counter()
    try:
        source = work.kernel.ASTSource(work.kernel, work.signature, work.constants, work.attributes)
        binary = triton.compile(source, target=target, options=work.options)
        result = read_usage(binary.asm["cubin"]) | {"shared_bytes": binary.metadata.shared}
    # Triton's errors have no common base; the record is where they are reported
    except Exception:
        result = {"error": records.format_failure()}
    seconds = round(time.perf_counter() - started, 2)
    return {"kind": "compiled", **work.describe(), "seconds": seconds, **result}


class Compilers:
    """Processes that compile, at most ``workers`` at a time, until ``deadline``."""

    def __init__(self, target: GPUTarget, workers: int, deadline: float) -> None:
        self.target, self.workers, self.deadline = target, workers, deadline
        self.waiting: deque[Specialization] = deque()
        self.running: dict[Any, tuple[Specialization, float, Path]] = {}
        self.folder = tempfile.TemporaryDirectory()
        self.started = 0

    def submit(self, work: Specialization) -> None:
        """Take on a kernel."""
        self.waiting.append(work)

    def advance(self) -> None:
        """Start what fits and note what has ended; does not wait."""
        for process in list(self.running):
            if not process.is_alive():
                self._finish(process)
            elif time.monotonic() > min(self.running[process][1], self.deadline):
                process.kill()
                process.join()
                self._finish(process)
        while self.waiting and len(self.running) < self.workers and self._has_time():
            self._start(self.waiting.popleft())

    def finish(self) -> int:
        """Wait for all, or for the deadline; returns how many were left out."""
        self.advance()
        while self.running:
            wait([process.sentinel for process in self.running], timeout=0.5)
            self.advance()
        self.folder.cleanup()
        return len(self.waiting)

    def _has_time(self) -> bool:
        return time.monotonic() < self.deadline

    def _start(self, work: Specialization) -> None:
        self.started += 1
        output = Path(self.folder.name) / str(self.started)
        process = _FORK.Process(target=_compile_and_record, args=(work, self.target, output))
        process.start()
        self.running[process] = (work, time.monotonic() + KERNEL_SECONDS, output)

    def _finish(self, process: Any) -> None:
        work, _, output = self.running.pop(process)
        process.join()
        if process.exitcode:
            said = output.read_text(errors="replace") if output.exists() else ""
            error = f"the compiler's process ended with status {process.exitcode}\n{said}"
            records.append({"kind": "compiled", **work.describe(), "error": error[-records.TAIL :]})


def _compile_and_record(work: Specialization, target: GPUTarget, output: Path) -> None:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    records.append(compile_one(work, target))


def launch_part(part: str, compilers: Compilers) -> None:
    """Launch all of a part, on samples of no content."""
    from benchmarks.gpu import sweep, tiles

    if part == "tests":
        launch_tests(compilers)
    elif part == "tiles":
        for _ in tiles.launch_variants("cpu"):
            compilers.advance()
    else:
        for _ in sweep.launch_everything("cpu", main_only=part == "main"):
            compilers.advance()


def launch_tests(compilers: Compilers) -> None:
    """Run the kernels' tests up to their launches: results are void, and so are the outcomes."""
    import pytest

    class Plugin:
        """Samples on the CPU; kernels are compiled while later tests are recorded."""

        @pytest.hookimpl(tryfirst=True)
        def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
            if fixturedef.argname != "triton_device":
                return None
            import torch

            device = torch.device("cpu")
            fixturedef.cached_result = (device, fixturedef.cache_key(request), None)
            return device

        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            items[:] = [item for item in items if "triton_device" in item.fixturenames]

        def pytest_runtest_teardown(self) -> None:
            compilers.advance()

    arguments = ["-q", "-s", "-p", "no:cacheprovider", "-W", "ignore", "--no-header"]
    arguments += ["--tb=no", "-r", "N", "-p", "no:randomly", *select_triton_tests()]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main(arguments, plugins=[Plugin()])


@contextlib.contextmanager
def start_compilers(architecture: int, seconds: float) -> Iterator[Compilers]:
    """Compile what is launched in the context; at its end, wait."""
    target = GPUTarget("cuda", architecture, 32)
    compilers = Compilers(target, count_cores(), time.monotonic() + seconds)
    record_launches(target, compilers.submit)
    yield compilers
    left = compilers.finish()
    print(f"{compilers.started} kernels compiled, {left} left out for lack of time")


def main(arguments: list[str]) -> int:
    """Compile the parts named."""
    architecture, seconds, *parts = arguments
    with start_compilers(int(architecture), float(seconds)) as compilers:
        for part in parts:
            launch_part(part, compilers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
