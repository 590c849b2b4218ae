"""Which versions, hardware and commit does a run use?"""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and commit, as recorded in the run folder."""
    packages = ("m3d_fast", "torch", "torchvision", "triton", "numpy")
    return {
        "python": platform.python_version(),
        "versions": {name: _find_version(name) for name in packages},
        "machine": platform.machine(),
        "processor": _find_processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _find_commit(),
    }


def _find_processor() -> str | None:
    """The processor's name, where the system tells it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find_commit() -> str | None:
    """Commit of the checkout that this package runs from; None if it was installed."""
    here = Path(__file__).resolve().parents[1]
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
