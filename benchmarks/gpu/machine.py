"""The machine, as one record: ``python -m benchmarks.gpu.machine``."""

import os
import platform
import shutil
import subprocess
from typing import Any

from benchmarks.gpu import records
from benchmarks.gpu.job_list import ROOT, count_cores


def read_output(command: list[str]) -> str:
    """The output of a command, "unknown" where it fails or is not installed."""
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def describe_software() -> dict[str, Any]:
    """Versions and commit."""
    import torch
    import triton

    return {
        "commit_info": {"id": read_output(["git", "rev-parse", "HEAD"])},
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
    }


def describe_gpu() -> dict[str, Any]:
    """The chip, its driver and its clocks."""
    import torch

    chip = torch.cuda.get_device_properties(torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability()
    fields = (
        "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,"
        "clocks_throttle_reasons.active"
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "architecture": 10 * major + minor,
        "multiprocessors": chip.multi_processor_count,
        "memory_bytes": chip.total_memory,
        "l2_bytes": chip.L2_cache_size,
        "shared_bytes": getattr(chip, "shared_memory_per_block_optin", None),
        "driver_and_clocks": read_output(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        ),
        "cores": count_cores(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


if __name__ == "__main__":
    records.append({"kind": "machine", "machine_info": describe_gpu(), **describe_software()})
