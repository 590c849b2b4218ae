"""What ``make gpu`` runs on a CUDA machine: the kernels' tests, compiled, then every benchmark.

Needs a bare checkout, torch, triton and pytest, no network and no pytest-benchmark. Writes one JSON
file per suite, in pytest-benchmark's layout, into benchmarks/results/<gpu>/, within 8 minutes: each
suite runs in a process that is stopped when its time is up, which its JSON file records as
"cut_short". Suites named on the command line run alone and may use all of the 8 minutes:
``python -m benchmarks.gpu engine``. The engine's suite runs only when named: its time is not
reserved in the budget.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.gpu.test_log import FILE_VARIABLE, read_log

ROOT = Path(__file__).resolve().parents[2]
# the most seconds of each suite, in order of importance
BUDGETS = {
    "tests": 200.0,
    "gradient": 100.0,
    "cmmd": 25.0,
    "kid": 25.0,
    "gpu_tests": 45.0,
    "two_sample": 30.0,
    "libraries": 40.0,  # KeOps compiles, without a limit of its own
}
BUDGET = sum(BUDGETS.values())  # seconds for all suites, and for all named suites together
TEST_SUITES = ("tests", "gpu_tests")
RECORDS_FLAG = "--records-of"  # followed by a suite: measure it in this process, print its records
# compiles ahead of time for other chips, for minutes, and needs no GPU
COMPILER_TESTS = "tests/kernels/triton/test_compiled.py"


def check_requirements() -> str | None:
    """The one sentence that says why nothing can run, or None."""
    if importlib.util.find_spec("torch") is None:
        return f"make gpu needs torch, which {sys.executable} lacks: pass PYTHON=..."
    import torch

    if not torch.cuda.is_available():
        return f"make gpu needs a CUDA device, and torch {torch.__version__} sees none."
    absent = [name for name in ("triton", "pytest") if importlib.util.find_spec(name) is None]
    if absent:
        return f"make gpu needs {' and '.join(absent)} beside torch: not installed."
    return None


def read_output(command: list[str]) -> str:
    """The output of a command, "unknown" where it fails or is not installed."""
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def describe_machine() -> dict[str, Any]:
    """The fields that every result file shares: hardware, versions, commit."""
    import torch
    import triton

    chip = torch.cuda.get_device_properties(torch.cuda.current_device())
    fields = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem"
    return {
        "machine_info": {
            "gpu": torch.cuda.get_device_name(),
            "multiprocessors": chip.multi_processor_count,
            "memory_bytes": chip.total_memory,
            "driver_and_clocks": read_output(["nvidia-smi", fields, "--format=csv"]),
            "python_version": platform.python_version(),
        },
        "commit_info": {"id": read_output(["git", "rev-parse", "HEAD"])},
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
    }


@cache
def has_engine() -> bool:
    """Whether the engine's dependencies are installed; prints one sentence if not."""
    installed = importlib.util.find_spec("safetensors") is not None
    if not installed:
        print("safetensors is not installed: the engine's tests and benchmark are left out.")
    return installed


def find_suites() -> dict[str, Callable[[], Iterable[dict[str, Any]]]]:
    """The benchmark suites whose dependencies are installed."""
    from benchmarks.gpu import suites

    found = dict(suites.SUITES)
    if has_engine():
        from benchmarks.gpu import engine

        found |= engine.SUITES
    return found


def find_hypothesis_tests() -> list[str]:
    """Test files of the kernels to ignore: those with hypothesis, where it is not installed."""
    if importlib.util.find_spec("hypothesis") is not None:
        return []
    files = sorted((ROOT / "tests" / "kernels").rglob("test_*.py"))
    ignored = [str(path.relative_to(ROOT)) for path in files if "hypothesis" in path.read_text()]
    print(f"hypothesis is not installed: {', '.join(ignored)} left out.", flush=True)
    return ignored


def find_gpu_tests() -> list[str]:
    """Test files, apart from the kernels', with tests that are skipped without a CUDA device."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]


def select_tests(suite: str) -> list[str]:
    """Pytest's arguments: the kernels' tests, or all others that need a GPU."""
    if suite == "gpu_tests":
        return ["-m", "gpu", *find_gpu_tests()]
    ignored = (COMPILER_TESTS, *find_hypothesis_tests())
    return ["tests/kernels", *(f"--ignore={path}" for path in ignored)]


def run_bounded(command: list[str], seconds: float, **environment: str) -> tuple[str, int | None]:
    """Run a command with a time limit: its output, and its status, None if it was stopped."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=max(0.0, seconds))[0], process.returncode
    except subprocess.TimeoutExpired:
        # with its children: a surviving worker would keep the GPU busy
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], None


def run_tests(suite: str, seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """Run tests compiled: one record of those that ended, and whether all did.

    Failed tests are listed with their tracebacks, also when the run is stopped.
    """
    # warnings of the installed versions are printed, and fail nothing
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu.test_log", *select_tests(suite)]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "tests.jsonl"
        environment = {"TRITON_INTERPRET": "0", FILE_VARIABLE: str(log)}
        output, status = run_bounded(command, seconds, **environment)
        ended = read_log(log)
    failed = [test for test in ended if test["outcome"] == "failed"]
    summary = output.strip().splitlines()[-1] if output.strip() else "no output"
    print("\n".join([*(test["test"] for test in failed[:40]), summary]), flush=True)
    info = {
        "case": f"{suite}, compiled",
        "summary": summary,
        "outcomes": dict(Counter(test["outcome"] for test in ended)),
        "failed": failed,
        "slowest": sorted(ended, key=lambda test: -test["seconds"])[:10],
        "status": 124 if status is None else status,
        "median_seconds": {"pytest": time.monotonic() - started},
    }
    return [{"name": suite, "extra_info": info}], status is not None


def run_benchmarks(suite: str, seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """Run a suite of benchmarks: the records it completed, and whether it finished."""
    command = [sys.executable, "-m", "benchmarks.gpu", RECORDS_FLAG, suite]
    output, status = run_bounded(command, seconds)
    lines = output.splitlines(keepends=True)
    # a stopped process may leave half a line; a compiler that a peer starts may print too
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
    for record in records:
        print(record["name"], record["extra_info"].get("median_seconds", record), flush=True)
    if status:
        info = {"case": suite, "error": f"stopped with status {status}", "median_seconds": {}}
        records.append({"name": f"{suite}: stopped", "extra_info": info})
    return records, status is not None


def print_records(suite: str) -> None:
    """Measure one suite; print each record as a line of JSON as soon as it is complete."""
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # what peers print
        for record in find_suites()[suite]():
            print(json.dumps(record), file=out, flush=True)


def choose_suites(named: list[str]) -> dict[str, float]:
    """The suites to run, in order, and the most seconds of each."""
    available = [*TEST_SUITES, *find_suites()]
    wanted = dict.fromkeys(named, BUDGET) or BUDGETS
    if not has_engine():
        available.remove("gpu_tests")
    elif not named:
        print("The engine's benchmark is run separately: python -m benchmarks.gpu engine")
    return {suite: seconds for suite, seconds in wanted.items() if suite in available}


def check_names(named: list[str]) -> str | None:
    """The one sentence that lists the suites if a name is none of them, or None."""
    known = (*BUDGETS, "engine")
    wrong = [name for name in named if name not in known]
    if not wrong:
        return None
    return f"make gpu has no suite {', '.join(wrong)}: expected some of {', '.join(known)}."


def run_suite(suite: str, seconds: float) -> dict[str, Any]:
    """The content of one suite's result file, without the machine's description."""
    records: list[dict[str, Any]] = []
    finished = False
    if seconds > 0:
        records, finished = (run_tests if suite in TEST_SUITES else run_benchmarks)(suite, seconds)
    content: dict[str, Any] = {"benchmarks": records}
    if not finished:
        content["cut_short"] = f"{suite}: stopped when its time was up, after {seconds:.0f} s"
        if seconds <= 0:
            content["cut_short"] = f"{suite}: left out, the {BUDGET:.0f} s were up"
        print(content["cut_short"], flush=True)
    return content


def main() -> int:
    """Run everything; 2 if it cannot, 1 if a test failed or a result was wrong."""
    if sys.argv[1:2] == [RECORDS_FLAG]:
        print_records(sys.argv[2])
        return 0
    reason = check_names(sys.argv[1:]) or check_requirements()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    import torch

    if importlib.util.find_spec("pytest_benchmark") is None:
        print("pytest-benchmark is not installed: timing without it.")
    started, machine = time.monotonic(), describe_machine()
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    folder = ROOT / "benchmarks" / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for suite, most in choose_suites(sys.argv[1:]).items():
        left = min(most, BUDGET - (time.monotonic() - started))
        content = machine | run_suite(suite, left)
        for record in content["benchmarks"]:
            info = record["extra_info"]
            info["torch"] = torch.__version__
            failed |= bool(info.get("status") or info.get("error"))
        (folder / f"{suite}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"results are in {folder.relative_to(ROOT)}")
    return int(failed)
