"""Every launch of many calls of the op on a CUDA device that does not exist, as JSON.

    TRITON_INTERPRET=0 python -m tests.helpers.launch_sweep

A process of its own, because Triton's interpreter is on or off for a whole process.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from m3d_fast.kernels.arguments import OpArguments
from m3d_fast.kernels.triton import dispatch
from tests.helpers import fake_cuda

# C, N, M, D: the shapes of M3D, its presets at other sizes, distribution matching, two samples
GRADIENT_SHAPES = [
    (10, 256, 4, 2048),
    (10, 256, 40, 2048),
    (10, 256, 200, 2048),
    (100, 256, 40, 2048),
    (10, 64, 90, 512),
    (100, 64, 90, 512),
    (100, 64, 180, 512),
    (1000, 64, 90, 512),
    (10, 128, 90, 8192),
    (10, 256, 500, 2048),
    (1, 64, 64, 2048),
    (1, 256, 256, 256),
    (1, 1000, 1000, 10),
    (1, 10_000, 10_000, 100),
    (3, 37, 11, 33),
]
VALUE_SHAPES = [(1, 5000, 5000, 768), (1, 50_000, 50_000, 1024), (100, 1000, 1000, 2048)]
PERMUTATION_SHAPES = [(1000, 10_000, 10_000, 50), (7, 37, 11, 33)]  # permutations first
FAMILIES = ("small", "split", "stream", "tile")
GAUSSIAN = ("gaussian_mean", [0.25, 0.5, 1.0, 2.0, 4.0])
POLYNOMIAL = ("polynomial", [3.0, 0.01, 1.0])


def call(
    x: Tensor,
    y: Tensor,
    *,
    precision: str = "highest",
    value: bool = True,
    wrt: str = "y",
    kernel: tuple[str, list[float]] = GAUSSIAN,
    lengths: Tensor | None = None,
) -> None:
    """Call the op as the registered function does."""
    given = OpArguments(
        x,
        y,
        None,
        lengths,
        lengths,
        *kernel,
        False,
        precision,
        value,
        "x" in wrt,
        "y" in wrt,
    )
    dispatch.mmd2_cuda(given)


def run_case(log: fake_cuda.Log, case: dict[str, Any]) -> dict[str, Any]:
    """Make one call, and list its launches."""
    log.launches.clear()
    choose_family = dispatch.choose_family
    classes, n, m, d = case["shape"]
    x, y = torch.empty(classes, n, d), torch.empty(classes, m, d)
    if case.get("family"):
        dispatch.choose_family = lambda problem: case["family"]
    try:
        lengths = torch.empty(classes, dtype=torch.int64) if case.get("lengths") else None
        call(x, y, **case["options"], lengths=lengths)
    finally:
        dispatch.choose_family = choose_family
    return case | {"launches": [describe_launch(launch) for launch in log.launches]}


def run_permutations(log: fake_cuda.Log, case: dict[str, Any]) -> dict[str, Any]:
    log.launches.clear()
    permutations, n, m, d = case["shape"]
    x, y = torch.empty(n, d), torch.empty(m, d)
    members = torch.zeros(permutations, n + m, dtype=torch.bool)
    given = OpArguments(x, y, None, None, None, *GAUSSIAN, False, case["options"]["precision"])
    dispatch.permuted_mmd2_cuda(members, given)
    return case | {"launches": [describe_launch(launch) for launch in log.launches]}


def describe_launch(launch: fake_cuda.Launch) -> dict[str, Any]:
    arguments = {name: fake_cuda.describe(value) for name, value in launch.arguments.items()}
    return vars(launch) | {"arguments": arguments}


def list_cases() -> Iterator[dict[str, Any]]:
    """Every family at every shape; that of the table at every precision and on every chip."""
    for shape, value, wrt in itertools.product(GRADIENT_SHAPES, (False, True), ("y", "xy")):
        options = {"value": value, "wrt": wrt}
        kinds = [(precision, 90) for precision in ("highest", "high", "medium")]
        if value and wrt == "xy":
            kinds += itertools.product(("highest", "medium"), (80, 86, 89, 120))
        for precision, architecture in kinds:
            case = {"shape": shape, "options": {**options, "precision": precision}}
            yield case | {"architecture": architecture, "lengths": shape[0] == 3}
        for family in FAMILIES:
            yield {"shape": shape, "options": options, "family": family, "architecture": 90}
    for shape, precision in itertools.product(VALUE_SHAPES, ("highest", "medium")):
        for kernel in (GAUSSIAN, POLYNOMIAL):
            options = {"wrt": "", "kernel": kernel, "precision": precision}
            yield {"shape": shape, "options": options, "architecture": 90}


def list_compilations(columns: int) -> list[str]:
    """Compilations over many numbers of rows, of batch elements and of permutations."""
    log = fake_cuda.install(90)
    rows = itertools.product((1, 5, 16, 64, 90), (1, 4, 17, 64, 96), (1, 7, 40, 64))
    for (n, m, classes), value in itertools.product(rows, (False, True)):
        call(torch.empty(classes, n, columns), torch.empty(classes, m, columns), value=value)
    for n, wrt in itertools.product((600, 1000, 1024, 5000), ("y", "xy", "")):
        call(torch.empty(2, n, columns), torch.empty(2, n + 1, columns), wrt=wrt)
    for permutations, n in itertools.product((1, 16, 100), (5, 64, 99)):
        options = {"precision": "highest"}
        run_permutations(log, {"shape": (permutations, n, 16, columns), "options": options})
    return log.compilations


def main() -> None:
    cases = []
    for case in list_cases():
        log = fake_cuda.install(case["architecture"])
        cases.append(run_case(log, case))
    log = fake_cuda.install(90)
    for shape in PERMUTATION_SHAPES:
        for precision in ("highest", "medium"):
            case = {"shape": shape, "options": {"precision": precision}, "architecture": 90}
            cases.append(run_permutations(log, case))
    compilations = {columns: list_compilations(columns) for columns in (512, 100)}
    json.dump({"cases": cases, "compilations": compilations}, sys.stdout)


if __name__ == "__main__":
    main()
