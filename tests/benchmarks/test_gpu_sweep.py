"""Every family is checked and timed at every shape that it can serve."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import records, sweep
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.sweep import force_family, measure_point
from m3d_fast.kernels import Polynomial
from m3d_fast.kernels.triton.families import FAMILIES, choose_input_precision
from tests.helpers.commands import PATIENCE, environment

TINY = Shape(name="tiny", sizes=(2, 5, 3, 20), flop=1e6, value_flop=1e6, megabytes=3.0)
MANY_ROWS = Shape(name="many", sizes=(1, 2, 600, 20), flop=1, megabytes=3.0)


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """The interpreter computes on the CPU, where there is no graph to time."""

    def time(calls):
        for call in calls[:1]:
            call()
        return [3e-6, 1e-6, 2e-6]

    def draw(shape, device, rows=None):
        classes, n, m, d = shape.sizes
        return torch.randn(classes, n, d).relu(), torch.randn(classes, m, d).relu()

    monkeypatch.setattr(sweep, "time_in_graph", time)
    monkeypatch.setattr(sweep, "draw_samples", draw)


@pytest.mark.parametrize("family", [row.name for row in FAMILIES])
@pytest.mark.parametrize("value", [False, True])
def test_a_point_has_errors_quartiles_and_its_share_of_the_floor(family, value):
    shape = TINY
    if family == "value":
        shape = Shape(name="tiny", sizes=TINY.sizes, wrt="none", flop=1e6, megabytes=3.0)
    point = measure_point(family, shape, "highest", value or family == "value", "cpu")
    assert "error" not in point, point["error"]
    expected = {"value"} if family == "value" else {"grad_y", *(["value"] if value else [])}
    assert set(point["errors"]) == expected
    assert max(point["errors"].values()) < 5e-6
    assert point["median_seconds"] == 2e-6
    assert point["quartiles"] == pytest.approx([1.5e-6, 2.5e-6])
    assert point["share_of_floor"] == pytest.approx(0.5), "3 MB at 3 TB/s are a microsecond"


def test_what_a_family_hands_over_is_not_timed_as_its_own():
    point = measure_point("split", MANY_ROWS, "highest", False, "cpu")
    assert point["not_served"] == "split leaves this problem to tile"
    assert "median_seconds" not in point
    assert not records.is_failure(point)


def test_a_wrong_result_is_not_timed(monkeypatch):
    right = sweep.call_op
    monkeypatch.setattr(sweep, "call_op", lambda *a: tuple(part * 1.1 for part in right(*a)))
    point = measure_point("tile", TINY, "highest", True, "cpu")
    assert "expected less than 5.0e-06" in point["error"]
    assert "median_seconds" not in point
    assert records.is_failure(point)


def test_any_error_is_recorded_and_the_table_is_as_before(monkeypatch):
    def fail(*arguments):
        raise MemoryError("shared memory")

    monkeypatch.setattr(sweep, "call_op", fail)
    choose, run = sweep.dispatch.choose_family, sweep.tile.run
    assert "MemoryError: shared memory" in measure_point("small", TINY, "high", True)["error"]
    assert (sweep.dispatch.choose_family, sweep.tile.run) == (choose, run)


def test_a_polynomial_is_measured():
    shape = Shape(name="kid", sizes=TINY.sizes, wrt="none", kernel=Polynomial(),
                  estimator="unbiased", flop=1, megabytes=1)  # fmt: skip
    point = measure_point("value", shape, "highest", True, "cpu")
    assert "error" not in point


def test_a_process_begins_behind_what_it_died_of_and_ends_when_the_device_is_lost(
    tmp_path, monkeypatch
):
    file = tmp_path / "records.jsonl"
    for name, value in (("FILE", str(file)), ("JOB", "sweep"), ("ATTEMPT", "1")):
        monkeypatch.setenv(getattr(records, f"{name}_VARIABLE"), value)
    begun = {"kind": "start", "name": f"tile, {SHAPES[0].name}, highest", "job": "sweep"}
    file.write_bytes(records.encode(begun | {"attempt": 0}))

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    asked = []
    monkeypatch.setattr(sweep, "measure_point", lambda *point: asked.append(point) or {
        "kind": "point", "error": "illegal"})  # fmt: skip
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sweep.main(["tile"])
    assert asked == [("tile", SHAPES[0], "highest", True)]
    assert [line["kind"] for line in records.read(file)] == ["start", "start", "point"]


def test_every_family_that_can_serve_a_shape_is_timed_there():
    """Not only the one that the table picks: by gradients alone."""
    for row in FAMILIES:
        shapes = {shape.name for shape, _, _ in sweep.list_points(row.name)}
        assert shapes == {s.name for s in SHAPES if s.gradients in row.gradients}
    points = list(sweep.list_points("tile"))
    assert {(precision, value) for _, precision, value in points} == {
        (precision, value) for precision in ("highest", "high") for value in (False, True)
    }
    assert len(points) == len(set(points))


# microseconds of the published floors: memory; three products in tf32, and in bf16; plain float32
FLOORS = {
    "low resolution, IPC 10 x 4": (9.2, 7.0, 3.5),
    "low resolution, IPC 50 x 4": (17.9, 50, 25),
    "ImageNet-100": (16.7, 18, 9.1),
    "ImageNet-1K": (167, 182, 91),
    "ResNetAP features": (33.6, 43, 22),
    "10 classes, M = 500": (34, 194, 97),
    "two samples of 10,000": (5, 900, 450),
    "CMMD, 5,000 rows": (10, 576, 288),
    "KID, 100 subsets": (546, 6100, 3100),
}


@pytest.mark.parametrize("name", FLOORS)
def test_floors_are_those_of_the_arithmetic(name):
    (shape,) = (shape for shape in SHAPES if shape.name == name)
    memory, highest, high = FLOORS[name]
    for precision, products in (("highest", highest), ("high", high)):
        floor = shape.compute_floor(precision, value=False)
        assert floor * 1e6 == pytest.approx(max(memory, products), rel=0.1)
    assert choose_input_precision("highest", 10) == "ieee", "which has a rate of its own"


LAUNCH = """
import json
from collections import Counter
from triton.backends.compiler import GPUTarget
from benchmarks.gpu import recording, sweep
recorded = []
recording.record_launches(GPUTarget("cuda", 90, 32), recorded.append)
for main_only in (True, False):
    seen = sweep.launch_everything("cpu", main_only=main_only)
    print(json.dumps(Counter(name.split(",")[0] for name in seen)))
    print(json.dumps(sorted({work.describe()["family"] for work in recorded})))
"""


def test_every_launch_of_the_sweep_is_recorded_without_a_gpu():
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        env=environment() | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    main, families, everything, _ = map(json.loads, done.stdout.splitlines())
    # a value alone is one point; with a gradient there are two, with and without the value
    expected = {row.name: 1 + any(row.gradients) for row in FAMILIES} | {"permute": 1}
    assert main == expected
    assert {row.name for row in FAMILIES} <= set(families)
    assert all(everything[name] >= count for name, count in expected.items())
    assert everything["tile"] == 3 * 2 * len([shape for shape in SHAPES if shape.gradients])


def test_forcing_reaches_the_op(monkeypatch):
    with force_family("split"):
        assert sweep.dispatch.choose_family(None) == "split"
        with pytest.raises(sweep.HandedOver):
            sweep.tile.run(None)
    with force_family("tile"):
        assert sweep.tile.run is sweep.dispatch.LAUNCHERS["tile"]
