"""What ``make gpu`` runs on a CUDA machine: the kernels' tests compiled, then every benchmark.

Needs a bare checkout, torch, triton and pytest, no network and no pytest-benchmark. Writes one JSON
per suite, in pytest-benchmark's layout, into benchmarks/results/<gpu>/, within 8 minutes; what is
left out then can be named: ``python -m benchmarks.gpu engine``.
"""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 470.0  # seconds for everything
TESTS_BUDGET = 240.0
# compiles for chips that are not there, for minutes, and needs no GPU
NOT_HERE = "tests/kernels/test_triton_compiled.py"
ENGINE_TESTS = [
    f"tests/test_condenser.py::{name}"
    for name in (
        "test_an_iteration_does_not_wait_for_the_device",
        "test_graphs_compiler_and_host_pixels_change_nothing_but_rounding",
    )
]


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


def has_engine() -> bool:
    """Whether the engine can run here; one sentence if not."""
    there = importlib.util.find_spec("safetensors") is not None
    if not there:
        print("safetensors is not installed: the engine's tests and benchmark left out.")
    return there


def suites(wanted: list[str]) -> dict[str, Callable[[], Iterable[dict[str, Any]]]]:
    """Those named on the command line, or all, in the order they run."""
    from benchmarks import gpu_suites

    known: dict[str, Any] = {"tests": tested, **gpu_suites.SUITES}
    if has_engine():
        from benchmarks import gpu_engine

        known |= gpu_engine.SUITES
    return {name: run for name, run in known.items() if not wanted or name in wanted}


def needing_hypothesis() -> list[str]:
    """Test files to leave out where hypothesis is not installed."""
    if importlib.util.find_spec("hypothesis") is not None:
        return []
    files = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    left_out = [str(path.relative_to(ROOT)) for path in files if "hypothesis" in path.read_text()]
    print(f"hypothesis is not installed: {', '.join(left_out)} left out.", flush=True)
    return left_out


def tested() -> list[dict[str, Any]]:
    """Run tests/kernels compiled; one record with pytest's own summary."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels"]
    command += ENGINE_TESTS if has_engine() else []
    command += [f"--ignore={path}" for path in (NOT_HERE, *needing_hypothesis())]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4"]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"TRITON_INTERPRET": "0"},
            capture_output=True,
            text=True,
            timeout=TESTS_BUDGET,
            check=False,
        )
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, status = (late.stdout or b"").decode(), 124
    failed = re.findall(r"^(?:FAILED|ERROR) .*", output, flags=re.MULTILINE)
    summary = output.strip().splitlines()[-1] if output.strip() else "no output"
    print("\n".join([*failed[:40], summary]), flush=True)
    info = {"case": "tests/kernels, compiled", "summary": summary, "failed": failed}
    seconds = {"pytest": time.monotonic() - started}
    return [
        {"name": "tests", "extra_info": info | {"status": status, "median_seconds": seconds}},
    ]


def timed(started: float, records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collect a suite's records until the time is up."""
    collected = []
    for record in records:
        collected.append(record)
        print(record["name"], record["extra_info"].get("median_seconds", record), flush=True)
        if time.monotonic() - started > BUDGET:
            print("time is up: the rest is left out", flush=True)
            break
    return collected


def main() -> int:
    """Run everything; 2 if it cannot, 1 if a test failed or a result was wrong."""
    reason = missing()
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
    for suite, run in suites(sys.argv[1:]).items():
        if time.monotonic() - started > BUDGET:
            print(f"{suite}: left out, the {BUDGET:.0f} s are up", flush=True)
            continue
        records = timed(started, iter(run()))
        for record in records:
            record["extra_info"]["torch"] = torch.__version__
            failed |= bool(record["extra_info"].get("status") or record["extra_info"].get("error"))
        content = common | {"benchmarks": records}
        (folder / f"{suite}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"results are in {folder.relative_to(ROOT)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
