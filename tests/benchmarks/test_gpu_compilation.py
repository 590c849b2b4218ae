"""Kernels are compiled ahead as launches compile them; one that fails takes no other along."""

import os
import subprocess
import sys
from textwrap import indent

from benchmarks.gpu import compilation, records
from tests.helpers.commands import PATIENCE, environment

# records the launches of tiny samples, then compiles the first kernel
SCRIPT = """
import os, signal, sys, time
import torch
import triton
from benchmarks.gpu import compilation, sweep
from benchmarks.gpu.shapes import Shape
from m3d_fast.kernels import Polynomial

sizes, kernel = (2, 5, 3, 20), Polynomial()
shape = Shape(name="tiny", sizes=sizes, wrt="none", kernel=kernel, flop=0, megabytes=0)
taken = []

def launch(precision):
    with sweep.force_family("value"):
        sweep.call_op(shape, torch.empty(2, 5, 20), torch.empty(2, 3, 20), precision, True)

def choose(work):
    if work.kernel.fn.__name__ == "mmd2_prepass_scalars_kernel":
        taken.append(work)
        submit(work)

with compilation.start_compilers(90, {seconds}) as compilers:
    submit, compilers.submit = compilers.submit, choose
    compilation.record_launches(compilers.target, choose)
{before}
    launch("highest")
    launch("high")
print(len(taken), "recorded")
"""
# Triton's own way, up to the driver, which a machine without a GPU lacks
LAUNCH = """
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
compile = JITFunction._do_compile
compilation.record_launches(GPUTarget("cuda", 90, 32), taken.append)
JITFunction._do_compile = compile
try:
    launch("highest")
except Exception as error:
    print("launched, until", type(error).__name__)
"""
# each of these instead of the compiler, for the kernel that would be compiled
FAILING = """
def fail(source, target, options):
    print("the compiler said no", file=sys.stderr, flush=True)
    exec(options["end"])

def submit_failing(work):
    triton.compile = fail
    ends = ["os.kill(os.getpid(), signal.SIGSEGV)", "raise MemoryError('out of registers')"]
    for end in ends:
        right_submit(work._replace(options=work.options | {"end": end}))
    compilers.advance()
    while compilers.running:
        compilers.advance()
    compilation.KERNEL_SECONDS = 1.0
    right_submit(work._replace(options=work.options | {"end": "time.sleep(600)"}))

right_submit, submit = submit, submit_failing
"""


def run(tmp_path, script: str) -> tuple[str, list[dict]]:
    file = tmp_path / "records.jsonl"
    settings = {
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        records.FILE_VARIABLE: str(file),
        records.JOB_VARIABLE: "compile",
        records.ATTEMPT_VARIABLE: "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), **settings, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, records.read(file)


def compile_tiny(tmp_path, *, before: str = "") -> tuple[str, list[dict]]:
    return run(tmp_path, SCRIPT.format(before=indent(before, "    "), seconds=PATIENCE))


def test_what_is_launched_is_compiled_once_and_found_by_later_launches(tmp_path):
    output, (line,) = compile_tiny(tmp_path)
    assert "1 recorded" in output, "both precisions launch the same kernel"
    assert "1 kernels compiled, 0 left out" in output
    assert line["kind"] == "compiled"
    assert line["family"] == "prepass"
    assert line["constants"]["MEAN_BANDWIDTH"] == "False"
    assert 0 < line["registers"] <= 255
    assert line["spilled_bytes"] == 0
    assert line["shared_bytes"] >= 0
    assert line["seconds"] > 0
    (cubin,) = (tmp_path / "cache").rglob("*.cubin")
    made = os.stat(cubin).st_mtime_ns
    output, _ = run(tmp_path, SCRIPT.split("with compilation.start")[0] + LAUNCH)
    assert "launched, until" in output
    assert list((tmp_path / "cache").rglob("*.cubin")) == [cubin], "nothing else was compiled"
    assert os.stat(cubin).st_mtime_ns == made


def test_a_kernel_that_cannot_be_compiled_takes_no_other_along(tmp_path):
    """One that crashes the compiler, one that raises in it, one that never ends."""
    output, lines = compile_tiny(tmp_path, before=FAILING)
    assert "3 kernels compiled" in output
    crashed, raised, hung = (
        next(line["error"] for line in lines if sign in line["error"])
        for sign in ("status -11", "MemoryError: out of registers", "status -9")
    )
    assert "the compiler said no" in crashed
    assert len({crashed, raised, hung}) == 3
    assert all(records.is_failure(line) for line in lines)


def test_no_kernel_is_begun_when_the_time_is_up():
    compilers = compilation.Compilers(target=None, workers=2, deadline=0.0)
    compilers.submit(None)
    assert compilers.finish() == 1
    assert compilers.started == 0


TESTS = """
from benchmarks.gpu import compilation
from triton.backends.compiler import GPUTarget
recorded = []
compilation.record_launches(GPUTarget("cuda", 90, 32), recorded.append)
compilation.select_triton_tests = lambda: ["tests/kernels/triton/test_stream.py"]
class Compilers:
    turns = 0
    def advance(self):
        self.turns += 1
compilers = Compilers()
compilation.launch_part("tests", compilers)
print(compilers.turns, "tests", len(recorded), "kernels", {w.kernel.fn.__name__ for w in recorded})
"""


def test_the_launches_of_tests_are_recorded(tmp_path):
    """The tests' own samples, on a CPU, up to a result that is void."""
    output, _ = run(tmp_path, TESTS)
    tests, kernels = (int(output.split(word)[0].split()[-1]) for word in ("tests", "kernels"))
    assert tests >= 1
    assert kernels >= 1
    assert "mmd2_stream_gradient_kernel" in output
