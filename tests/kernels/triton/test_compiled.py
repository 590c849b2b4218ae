"""Every configuration compiles for sm_80 and sm_90 and fits: without the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

from m3d_fast.kernels.triton.dispatch import CONFIGS

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_every_configuration_compiles_without_spills_and_fits():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    report = subprocess.run(
        [sys.executable, str(BENCHMARKS / "aot_report.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stdout + report.stderr


def test_the_committed_report_lists_every_configuration():
    lines = (BENCHMARKS / "results/aot.md").read_text().splitlines()
    for config in CONFIGS:
        blocks = "x".join(str(size) for size in config.blocks.values())
        start = (
            f"| {config.name} | {config.input_precision} | {blocks}"
            f" | {config.warps}, {config.stages} |"
        )
        found = [line for line in lines if line.startswith(start)]
        assert len(found) >= len(config.architectures), f"{start}: run aot_report.py --write"
