"""What ``make gpu`` runs on a CUDA machine: the kernels' tests compiled, then every benchmark.

Needs a bare checkout, torch, triton and pytest, no network and no pytest-benchmark. Writes one JSON
per suite, in pytest-benchmark's layout, into benchmarks/results/<gpu>/, within 8 minutes: a suite
is a process that is stopped when its time is up, and its JSON then says so as "cut_short". Suites
that are named run alone, with all the time there is: ``python -m benchmarks.gpu engine``. The
engine's runs only so: it would not fit beside the others.
"""

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# the most seconds each suite may take, what matters most first
BUDGETS = {
    "tests": 200.0,
    "gradient": 100.0,
    "cmmd": 25.0,
    "kid": 25.0,
    "gpu_tests": 45.0,
    "two_sample": 30.0,
    "libraries": 40.0,  # KeOps compiles, for as long as it takes
}
BUDGET = sum(BUDGETS.values())  # for everything, and for what is named
TESTS = ("tests", "gpu_tests")
ONE = "--records-of"  # with a suite: measure it here and print its records
# compiles for chips that are not there, for minutes, and needs no GPU
NOT_HERE = "tests/kernels/triton/test_compiled.py"


def missing() -> str | None:
    """The one sentence that says why nothing can run."""
    if importlib.util.find_spec("torch") is None:
        return f"make gpu needs torch, which {sys.executable} has not: pass PYTHON=..."
    import torch

    if not torch.cuda.is_available():
        return f"make gpu needs a CUDA device, and torch {torch.__version__} sees none."
    absent = [name for name in ("triton", "pytest") if importlib.util.find_spec(name) is None]
    if absent:
        return f"make gpu needs {' and '.join(absent)} beside torch: not installed."
    return None


def described() -> dict[str, Any]:
    """What every result carries: hardware, versions, commit."""
    import torch
    import triton

    asked = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "machine_info": {
            "gpu": torch.cuda.get_device_name(),
            "python_version": platform.python_version(),
        },
        "commit_info": {"id": found.stdout.strip() or "unknown"},
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
    }


@cache
def has_engine() -> bool:
    """Whether the engine can run here; one sentence if not."""
    there = importlib.util.find_spec("safetensors") is not None
    if not there:
        print("safetensors is not installed: the engine's tests and benchmark left out.")
    return there


def suites() -> dict[str, Callable[[], Iterable[dict[str, Any]]]]:
    """What can be measured here."""
    from benchmarks.gpu import suites as gpu_suites

    known: dict[str, Any] = dict(gpu_suites.SUITES)
    if has_engine():
        from benchmarks.gpu import engine as gpu_engine

        known |= gpu_engine.SUITES
    return known


def needing_hypothesis() -> list[str]:
    """Test files to leave out where hypothesis is not installed."""
    if importlib.util.find_spec("hypothesis") is not None:
        return []
    files = sorted((ROOT / "tests" / "kernels").rglob("test_*.py"))
    left_out = [str(path.relative_to(ROOT)) for path in files if "hypothesis" in path.read_text()]
    print(f"hypothesis is not installed: {', '.join(left_out)} left out.", flush=True)
    return left_out


def bounded(command: list[str], seconds: float, **environment: str) -> tuple[str, int | None]:
    """Run a command for so long at most: its output, and its status, None if it was cut short."""
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
        # with its children: a worker left behind would hold the GPU
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], None


def gpu_test_files() -> list[str]:
    """Files beside the kernels' with tests that are skipped without a CUDA device."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]


def selection(suite: str) -> list[str]:
    """What pytest is to run: the kernels' tests, or all others that need a GPU."""
    if suite == "gpu_tests":
        return ["-m", "gpu", *gpu_test_files()]
    return ["tests/kernels", *(f"--ignore={path}" for path in (NOT_HERE, *needing_hypothesis()))]


def tested(suite: str, seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """Run tests compiled: one record with pytest's own summary, and whether it was finished."""
    # warnings of versions that are not ours to choose are shown and fail nothing
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    command += selection(suite)
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    started = time.monotonic()
    output, status = bounded(command, seconds, TRITON_INTERPRET="0")
    failed = re.findall(r"^(?:FAILED|ERROR) .*", output, flags=re.MULTILINE)
    summary = output.strip().splitlines()[-1] if output.strip() else "no output"
    print("\n".join([*failed[:40], summary]), flush=True)
    info = {"case": f"{suite}, compiled", "summary": summary, "failed": failed}
    taken = {"pytest": time.monotonic() - started}
    info |= {"status": 124 if status is None else status, "median_seconds": taken}
    return [{"name": suite, "extra_info": info}], status is not None


def timed(suite: str, seconds: float) -> tuple[list[dict[str, Any]], bool]:
    """Run a suite: its records as far as it came, and whether it was finished."""
    output, status = bounded([sys.executable, "-m", "benchmarks.gpu", ONE, suite], seconds)
    lines = output.splitlines(keepends=True)
    # what was killed may have left half a line; a compiler that a peer starts may print too
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
    for record in records:
        print(record["name"], record["extra_info"].get("median_seconds", record), flush=True)
    if status:
        wrong = {"case": suite, "error": f"stopped with status {status}", "median_seconds": {}}
        records.append({"name": f"{suite}: stopped", "extra_info": wrong})
    return records, status is not None


def print_records(suite: str) -> None:
    """Measure one suite: a line of JSON for each record, as they come."""
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # what peers have to say
        for record in suites()[suite]():
            print(json.dumps(record), file=out, flush=True)


def chosen(named: list[str]) -> dict[str, float]:
    """What runs, in order, and the most seconds each may take."""
    here = [*TESTS, *suites()]
    wanted = dict.fromkeys(named, BUDGET) or BUDGETS
    if not has_engine():
        here.remove("gpu_tests")
    elif not named:
        print("The engine's benchmark has a run of its own: python -m benchmarks.gpu engine")
    return {suite: most for suite, most in wanted.items() if suite in here}


def unknown(named: list[str]) -> str | None:
    """The one sentence that says which suites there are, if one is named that is none of them."""
    known = (*BUDGETS, "engine")
    wrong = [name for name in named if name not in known]
    if not wrong:
        return None
    return f"make gpu has no suite {', '.join(wrong)}: expected some of {', '.join(known)}."


def main() -> int:
    """Run everything; 2 if it cannot, 1 if a test failed or a result was wrong."""
    if sys.argv[1:2] == [ONE]:
        print_records(sys.argv[2])
        return 0
    reason = unknown(sys.argv[1:]) or missing()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    import torch

    if importlib.util.find_spec("pytest_benchmark") is None:
        print("pytest-benchmark is not installed: timing without it.")
    started, common = time.monotonic(), described()
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    folder = ROOT / "benchmarks" / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for suite, most in chosen(sys.argv[1:]).items():
        left = min(most, BUDGET - (time.monotonic() - started))
        if left <= 0:
            records, finished = [], False
        else:
            records, finished = (tested if suite in TESTS else timed)(suite, left)
        content = common | {"benchmarks": records}
        if not finished:
            content["cut_short"] = f"{suite}: stopped when its time was up, after {left:.0f} s"
            if left <= 0:
                content["cut_short"] = f"{suite}: left out, the {BUDGET:.0f} s were up"
            print(content["cut_short"], flush=True)
        for record in records:
            record["extra_info"]["torch"] = torch.__version__
            failed |= bool(record["extra_info"].get("status") or record["extra_info"].get("error"))
        (folder / f"{suite}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"results are in {folder.relative_to(ROOT)}")
    return int(failed)
