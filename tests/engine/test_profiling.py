"""What ``--profile`` and the GPU benchmark of the engine report."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.gpu.engine import Case, measure_case
from m3d_fast.engine.profiling import RANGES, _format_table
from tests.helpers.commands import condense_digits, run


def test_profile_writes_a_table_of_all_ranges_and_a_trace(tmp_path) -> None:
    out = tmp_path / "run"
    done = run("condense", *condense_digits(out, "--profile", "--class-chunk", "auto"))
    assert done.returncode == 0, done.stderr
    table = (out / "profile.txt").read_text()
    rows = {line[:18].strip(): line[18:].split() for line in table.split("\n\n")[0].splitlines()}
    assert set(RANGES) <= set(rows)
    assert float(rows["network real"][1]) > 0
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {"backward", "MMD"} <= {event.get("name") for event in events}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["loader_wait"] < 1 and line["images_per_second"] > 0 for line in lines)


class Averages(list):
    def table(self, **_: object) -> str:
        return "the operators"


def test_a_range_on_the_host_and_on_the_gpu_is_one_row() -> None:
    """The profiler gives a range twice, and the GPU's row knows nothing of the host's time."""
    host = SimpleNamespace(
        key="MMD", count=6, cpu_time_total=9e3, device_time_total=6e3, device_type=DeviceType.CPU
    )
    gpu = SimpleNamespace(
        key="MMD", count=3, cpu_time_total=0.0, device_time_total=7e3, device_type=DeviceType.CUDA
    )
    for rows in ([host, gpu], [gpu, host]):
        table = _format_table(SimpleNamespace(key_averages=lambda rows=rows: Averages(rows)))
        lines = [line.split() for line in table.splitlines() if line.startswith("MMD")]
        assert lines == [["MMD", "2", "3.00", "2.00"]]


def test_the_gpu_benchmark_of_the_engine_runs() -> None:
    """On a CPU, tiny: its figures mean nothing, its arithmetic does."""
    case = Case("try", "cifar10", 3, 1, loop=True, iterations=10, real_batch=2)
    compiled = torch.compile
    torch.compile = lambda function, **_: function  # the compiler is not what is tried
    try:
        info = measure_case(case, "cpu", rounds=1)["extra_info"]
    finally:
        torch.compile = compiled
    taken, loop = info["median_seconds"].values()
    assert info["times_faster_than_loop"] == pytest.approx(loop / taken)
    assert info["projected_hours"] == pytest.approx(10 * taken / 3600)
    # 3 classes of 2 real forward, and 4 synthetic forward and backward
    images = 3 * (2 + 2 * 4)
    macs = 128 * (32**2 * 27 + 16**2 * 1152 + 8**2 * 1152)
    assert info["network_flop_per_second"] * taken == pytest.approx(2 * macs * images)
    assert info["images_per_second"] == pytest.approx(18 / taken)
