"""What the launchers pass to the kernels on a GPU, seen by a driver that launches nothing.

The interpreter runs kernels on small samples and shares neither Triton's binding of arguments nor
its specialisation with a GPU. Here the real ones run at real sizes, on every chip that is served.
"""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from m3d_fast.kernels.triton.dispatch import CONFIGS
from tests.helpers.fake_cuda import SHARED_MEMORY

ROOT = Path(__file__).parents[3]


class Expected(NamedTuple):
    """What must hold in a launch of one kernel, in its arguments and C, the batch elements."""

    classes: str
    programs: str
    elements: dict[str, str]  # that the memory of a pointer has at least
    conditions: tuple[str, ...] = ()


SAMPLES = {
    "x_ptr": "(C - 1) * x_class_stride + (N - 1) * x_row_stride + D",
    "y_ptr": "(C - 1) * y_class_stride + (M - 1) * y_row_stride + D",
}
STACKED = {"stacked_ptr": "C * (N + M) * D", "squares_ptr": "C * (N + M)"}
SCALARS = {"inverse_bandwidth_ptr": "C", "pairs_ptr": "3 * C", "counts_ptr": "2 * C"}
SPLIT = {"means_ptr": "C * column_blocks * D"}
SLOTS = ("first_slot + row_blocks <= slots",)
EXPECTED = {
    "mmd2_prepass_sums_kernel": Expected(
        "sums_ptr.shape[0]",
        "C * chunks * cdiv(D, BLOCK_D)",
        SAMPLES | {"sums_ptr": "C * chunks * D"},
        ("chunks_x * chunk_rows >= N", "(chunks - chunks_x) * chunk_rows >= M"),
    ),
    "mmd2_prepass_stack_kernel": Expected(
        "stacked_ptr.shape[0]",
        "C * blocks",
        SAMPLES | STACKED | {"sums_ptr": "C * chunks * D"},
        ("blocks_x * BLOCK_N >= N", "(blocks - blocks_x) * BLOCK_N >= M"),
    ),
    "mmd2_prepass_scalars_kernel": Expected("counts_ptr.shape[0]", "C", SCALARS),
    "mmd2_tile_weights_kernel": Expected(
        "stacked_ptr.shape[0]",
        "C * row_blocks * (cdiv(N, BLOCK_N) + cdiv(M, BLOCK_N))",
        STACKED
        | SCALARS
        | {
            "weights_ptr": "C * row_blocks * BLOCK_M * weights_stride",
            "partial_ptr": "C * (cdiv(N, BLOCK_N) + cdiv(M, BLOCK_N)) * all_row_blocks",
        },
        (
            "weights_stride >= N + M",
            "weights_stride % 16 == 0",
            "row_stride == D",
            "first_row_block + row_blocks <= all_row_blocks",
        ),
    ),
    "mmd2_tile_gradient_kernel": Expected(
        "stacked_ptr.shape[0]",
        "C * cdiv(chunk_rows, BLOCK_M) * cdiv(D, BLOCK_D) * pieces",
        {
            "stacked_ptr": "C * (N + M) * D",
            "weights_ptr": "C * chunk_rows * weights_stride",
            "gradient_ptr": "(pieces - 1) * gradient_piece_stride + rows * D"
            " + (C - 1) * gradient_class_stride",
        },
        (
            "0 < rows <= chunk_rows",
            "pieces * piece_steps * BLOCK_K >= N + M",
            "row_stride == D",
            "(pieces - 1) * piece_steps * BLOCK_K < N + M",
            "first_row % BLOCK_M == 0",
        ),
    ),
    "mmd2_value_sums_kernel": Expected(
        "partial_ptr.shape[0]",
        "C * tiles",
        {
            "partial_ptr": "C * tiles",
            "a_ptr": "(C - 1) * a_class_stride + (A - 1) * a_row_stride + D",
            "b_ptr": "(C - 1) * b_class_stride + (B - 1) * b_row_stride + D",
        },
        ("tiles >= cdiv(A, BLOCK_M) * (cdiv(B, BLOCK_N) + SAME) // (1 + SAME)",),
    ),
    "mmd2_value_finish_kernel": Expected(
        "value_ptr.shape[0]",
        "C",
        {
            "within_x_ptr": "(C - 1) * x_step + slots_x",
            "within_y_ptr": "(C - 1) * y_step + slots_y",
            "between_ptr": "(C - 1) * between_step + slots_between",
            "pairs_ptr": "3 * C",
        },
    ),
    "mmd2_permute_sums_kernel": Expected(
        "1",
        "cdiv(tiles, tiles_each)",
        {
            "points_ptr": "(R - 1) * row_stride + D",
            "members_ptr": "B * R",
            "within_ptr": "programs * B",
            "touching_ptr": "programs * B",
            "all_ptr": "programs",
        },
        ("tiles == cdiv(R, BLOCK_M) * (cdiv(R, BLOCK_M) + 1) // 2",),
    ),
    "mmd2_small_gradient_kernel": Expected(
        "gradient_ptr.shape[0]",
        "C * row_blocks",
        {
            "other_ptr": "(C - 1) * other_class_stride + (OTHER_ROWS - 1) * other_row_stride + D",
            "own_ptr": "(C - 1) * own_class_stride + (OWN_ROWS - 1) * own_row_stride + D",
            "gradient_ptr": "C * OWN_ROWS * D",
            "inverse_bandwidth_ptr": "C",
            "totals_ptr": "C * slots",
        },
        (
            "row_blocks * BLOCK_M >= OWN_ROWS",
            "OWN_ROWS <= BLOCK_OWN",
            "OTHER_ROWS <= BLOCK_OTHER",
            *SLOTS,
        ),
    ),
    "mmd2_small_within_kernel": Expected(
        "inverse_bandwidth_ptr.shape[0]",
        "C * row_blocks",
        {
            "points_ptr": "(C - 1) * class_stride + (ROWS - 1) * row_stride + D",
            "totals_ptr": "C * slots",
        },
        ("row_blocks * BLOCK_M >= ROWS", "ROWS <= BLOCK_N", *SLOTS),
    ),
    "mmd2_split_products_kernel": Expected(
        "means_ptr.shape[0]",
        "C * row_blocks * column_blocks * slices",
        SAMPLES
        | SPLIT
        | {
            "partial_ptr": "C * slices * R * (N + M)",
            "spreads_ptr": "C * slices * column_blocks",
        },
        (
            "slices * slice_steps * BLOCK_D >= D",
            "(slices - 1) * slice_steps * BLOCK_D < D",
            "x_column_blocks * BLOCK_N >= N",
            "(column_blocks - x_column_blocks) * BLOCK_N >= M",
            "row_blocks * BLOCK_M >= R",
            "first_row + R <= N + M",
        ),
    ),
    "mmd2_split_weights_kernel": Expected(
        "means_ptr.shape[0]",
        "C * row_blocks",
        SPLIT
        | {
            "partial_ptr": "C * slices * R * (N + M)",
            "weights_ptr": "C * R * weights_stride",
            "totals_ptr": "C * row_blocks",
        },
        (
            "row_blocks * BLOCK_R >= R",
            "BLOCK_K >= N + M",
            "first_y_column >= N",
            "weights_stride >= first_y_column + M",
            "weights_stride % 16 == 0",
        ),
    ),
    "mmd2_split_gradient_kernel": Expected(
        "means_ptr.shape[0]",
        "C * row_blocks * cdiv(D, BLOCK_D)",
        SAMPLES
        | SPLIT
        | {
            "weights_ptr": "C * R * weights_stride",
            "gradient_ptr": "C * (N if OWN == 0 else M) * D",
        },
        (
            "row_blocks * BLOCK_M >= (N if OWN == 0 else M)",
            "first_y_column % 16 == 0",
            "first_row <= (0 if OWN == 0 else N)",
        ),
    ),
    "mmd2_stream_gradient_kernel": Expected(
        "gradient_ptr.shape[0]",
        "C * row_blocks",
        STACKED
        | SCALARS
        | {"gradient_ptr": "C * (N if OWN == 0 else M) * D", "totals_ptr": "C * slots"},
        ("D <= BLOCK_D", "row_blocks * BLOCK_M >= (N if OWN == 0 else M)", *SLOTS),
    ),
}


@pytest.fixture(scope="module")
def sweep() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.launch_sweep"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def iterate_launches(sweep: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for case in sweep["cases"]:
        for launch in case["launches"]:
            yield case, launch


def test_launches_cover_their_samples_and_stay_in_their_memory(sweep):
    seen = Counter()
    for case, launch in iterate_launches(sweep):
        expected = EXPECTED[launch["kernel"]]
        names: dict[str, Any] = {
            name: SimpleNamespace(**value) if isinstance(value, dict) else value
            for name, value in launch["arguments"].items()
        }
        names |= {"cdiv": lambda a, b: -(-a // b), "programs": launch["grid"][0]}
        names["C"] = eval(expected.classes, names)
        place = f"{launch['kernel']} of {case['shape']}, {case['options']}"
        assert launch["grid"] == [eval(expected.programs, names), 1, 1], place
        assert 0 < launch["grid"][0] < 2**31, place
        for pointer, elements in expected.elements.items():
            assert names[pointer].elements >= eval(elements, names), f"{pointer}: {place}"
        for condition in expected.conditions:
            assert eval(condition, names), f"{condition}: {place}"
        seen[launch["kernel"]] += 1
    assert set(seen) == set(EXPECTED) == {config.name for config in CONFIGS}


def test_every_row_gets_its_gradient(sweep):
    """The tile family computes rows in parts: together they are all rows, none of them twice."""
    seen = 0
    for case in sweep["cases"]:
        rows: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
        for launch in case["launches"]:
            if launch["kernel"] == "mmd2_tile_gradient_kernel":
                given = launch["arguments"]
                classes = given["stacked_ptr"]["shape"][0]
                rows[given["OWN"]].append((given["first_row"], given["rows"] * classes))
        for own, parts in rows.items():
            if parts:
                assert sum(count for _, count in parts) == case["shape"][0] * case["shape"][1 + own]
                seen += 1
    assert seen > 50


def test_few_programs_share_the_pairs(sweep):
    """At 384 rows of 100 columns there are 12 programs of 625 steps: the steps are divided."""
    grids = [
        launch["grid"][0]
        for case, launch in iterate_launches(sweep)
        if launch["kernel"] == "mmd2_tile_gradient_kernel"
        and case["shape"] == [1, 10_000, 10_000, 100]
        and launch["arguments"]["rows"] > 300
    ]
    assert min(grids) >= 200


def test_every_launch_fits_the_chip(sweep):
    """Shared memory as the tables declare it, which test_compiled.py compares with the compiler."""
    for case, launch in iterate_launches(sweep):
        given = launch["arguments"]
        kind = launch["kernel"], given.get("INPUT_PRECISION", "none"), launch["warps"]
        declared = [
            config.shared_memory
            for config in CONFIGS
            if (config.name, config.input_precision, config.warps) == kind
            and all(given[name] <= size for name, size in config.blocks.items())
        ]
        assert declared, f"{kind} is not in a table"
        assert min(declared) <= SHARED_MEMORY[case["architecture"]], kind


def test_older_chips_get_no_tiles_of_the_newest(sweep):
    for case, launch in iterate_launches(sweep):
        if case["architecture"] != 90:
            assert "split" not in launch["kernel"]
            assert "small" not in launch["kernel"]


def test_a_launch_overlaps_only_one_of_its_own_call_for_which_its_kernel_waits(sweep):
    """Programmatic dependent launch: never the first of a call, and on sm_90 alone."""
    dependent = 0
    for case in sweep["cases"]:
        for place, launch in enumerate(case["launches"]):
            waits = launch["arguments"].get("PDL", False)
            assert launch["dependent"] == (waits and place > 0)
            assert not waits or case["architecture"] == 90
            dependent += launch["dependent"]
    assert dependent > 50


def test_a_call_without_the_value_launches_no_more_than_one_with_it(sweep):
    counts: dict[str, dict[bool, int]] = {}
    for case in sweep["cases"]:
        if case["options"].get("value") is not None and case["architecture"] == 90:
            options = {name: value for name, value in case["options"].items() if name != "value"}
            key = str((case["shape"], options, case.get("family")))
            counts.setdefault(key, {})[case["options"]["value"]] = len(case["launches"])
    assert counts
    assert all(both[False] <= both[True] for both in counts.values())


def test_new_numbers_of_rows_compile_nothing(sweep):
    """Only constants of a kernel make another binary; of odd columns also the strides."""
    compiled = Counter(sweep["compilations"]["512"])
    assert max(compiled.values()) == 1, compiled.most_common(3)
    # whether batch elements begin at multiples of 16: two strides
    compiled = Counter(sweep["compilations"]["100"])
    assert max(compiled.values()) <= 4, compiled.most_common(3)
    assert math.fsum(map(len, sweep["compilations"].values())) < 100
