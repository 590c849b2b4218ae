"""Every kernel family at every shape that it can serve, checked against float64, then timed.

python -m benchmarks.gpu.sweep FAMILY [main]     on a CUDA device; main: one shape alone

Each point is a record; a process that is started again leaves out the points it had begun.
"""

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu import records
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.gpu.timing import find_quartiles, relative_error, time_in_graph
from m3d_fast.kernels import reference
from m3d_fast.kernels.arguments import OpArguments
from m3d_fast.kernels.triton import dispatch, tile
from m3d_fast.kernels.triton.families import FAMILIES

MAIN = ("highest",)  # of the first shape that a family serves
TIMED = ("highest", "high")
COMPILED = (*TIMED, "medium")  # the other suites time it too
COLD_BYTES = 160 * 2**20  # of alternating inputs: three times the 50 MB of an H100's cache
CHECKED_ROWS, CHECKED_CLASSES = 5000, 8  # more would not fit in memory in float64
# against float64: relative error of the gradient, absolute error of MMD^2 over the sum of scales
GRADIENT_BOUNDS = {"highest": 2e-6, "high": 3e-5, "medium": 1.5e-2}
VALUE_BOUNDS = {"highest": 5e-6, "high": 5e-6, "medium": 3e-5}
POLYNOMIAL_BOUNDS = {"highest": 1e-5, "high": 1e-4, "medium": 1e-2}


class HandedOver(Exception):
    """A family left a problem to the tile family."""


@contextmanager
def force_family(name: str) -> Iterator[None]:
    """Serve every call by one family, whatever the table says."""

    def refuse(call: object) -> None:
        raise HandedOver(f"{name} leaves this problem to tile")

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(dispatch, "choose_family", return_value=name))
        if name != "tile":
            patches.enter_context(mock.patch.object(tile, "run", refuse))
        yield


def list_families() -> list[str]:
    """Families, in the order of the table."""
    return [family.name for family in FAMILIES]


def list_points(
    family: str, precisions: tuple[str, ...] = TIMED
) -> Iterator[tuple[Shape, str, bool]]:
    """Shapes by value, precision, and whether with the value, of the family's kind."""
    counts = next(row.gradients for row in FAMILIES if row.name == family)
    for shape, precision in itertools.product(SHAPES, precisions):
        if shape.gradients in counts:
            for value in (False, True) if shape.gradients else (True,):
                yield shape, precision, value


def draw_samples(shape: Shape, device: str, *, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Like features of a network; on a CPU, for launches that compute nothing, of no content."""
    classes, n, m, d = shape.sizes
    n, m = (min(count, rows or count) for count in (n, m))
    if device == "cpu":
        return torch.empty(classes, n, d), torch.empty(classes, m, d)
    x = torch.randn(classes, n, d, device=device).relu()
    return x, (torch.randn(classes, m, d, device=device) + 0.1).relu()


def call_op(shape: Shape, x: Tensor, y: Tensor, precision: str, value: bool) -> tuple[Tensor, ...]:
    """Value and gradients, by Triton."""
    name, parameters, bandwidth = shape.kernel.encode(x.shape[-1])
    arguments = OpArguments(
        *(x, y, bandwidth, None, None, name, parameters, shape.estimator == "unbiased", precision),
        value=value,
        grad_x=shape.wrt == "both",
        grad_y=shape.wrt != "none",
    )
    return dispatch.mmd2_cuda(arguments)


def launch_everything(device: str, *, main_only: bool) -> Iterator[str]:
    """Launch every point once, or each family's main shape alone; yields after each."""
    for family in list_families():
        for shape, precision, value in list_points(family, MAIN if main_only else COMPILED):
            try:
                with force_family(family):
                    call_op(shape, *draw_samples(shape, device), precision, value)
            except HandedOver:
                continue
            yield f"{family}, {shape.name}, {precision}"
            if main_only and value:
                break
    yield from _launch_permutations(device)


def _launch_permutations(device: str) -> Iterator[str]:
    x, y = torch.empty(2, 10_000, 50, device=device)
    members = torch.zeros(1000, 20_000, dtype=torch.bool, device=device)
    name, parameters, _ = SHAPES[0].kernel.encode(50)
    arguments = OpArguments(x, y, None, None, None, name, parameters, False, "highest")
    dispatch.permuted_mmd2_cuda(members, arguments)
    yield "permute"


def compute_exact(shape: Shape, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
    """Value and gradients in float64 of the first batch elements."""
    few = (sample[:CHECKED_CLASSES].double() for sample in (x, y))
    name, parameters, bandwidth = shape.kernel.encode(x.shape[-1])
    rule = reference.Rule(name, parameters, shape.estimator == "unbiased")
    assert bandwidth is None, "no shape has a bandwidth of its own"
    return reference.mmd2(*few, rule, grad_x=shape.wrt == "both", grad_y=shape.wrt != "none")


def check(shape: Shape, precision: str, value: bool, device: str) -> dict[str, float]:
    """Errors over their bounds are a failure: raises ValueError. Returns the errors."""
    x, y = draw_samples(shape, device, rows=CHECKED_ROWS)
    exact = compute_exact(shape, x, y)
    ours = call_op(shape, x, y, precision, value)
    errors = {}
    if value and exact[0] is not None:
        errors["value"] = (ours[0][:CHECKED_CLASSES] - exact[0]).abs().max().item()
    for name, result, truth in zip(("grad_x", "grad_y"), ours[1:], exact[1:], strict=True):
        if truth is not None:
            errors[name] = relative_error(result[:CHECKED_CLASSES], truth)
    bounds = VALUE_BOUNDS if shape.kernel.encode(1)[0] != "polynomial" else POLYNOMIAL_BOUNDS
    for name, error in errors.items():
        bound = bounds[precision] if name == "value" else GRADIENT_BOUNDS[precision]
        if not error < bound:  # also of NaN
            raise ValueError(f"{name} is off by {error:.1e}, expected less than {bound:.1e}")
    return errors


def time_point(shape: Shape, precision: str, value: bool, device: str) -> dict[str, Any]:
    """Quartiles of the seconds of a call, by itself in a graph, on inputs outside the cache."""
    x, y = draw_samples(shape, device)
    copies = max(1, min(32, COLD_BYTES // (4 * (x.numel() + y.numel()))))
    pairs = [(x, y), *((x.clone(), y.clone()) for _ in range(copies - 1))]
    seconds = time_in_graph(
        [lambda pair=pair: call_op(shape, *pair, precision, value) for pair in pairs]
    )
    low, median, high = find_quartiles(seconds)
    floor = shape.compute_floor(precision, value)
    return {
        "median_seconds": median,
        "quartiles": [low, high],
        "rounds": len(seconds),
        "floor_seconds": floor,
        "share_of_floor": floor / median,
    }


def measure_point(
    family: str, shape: Shape, precision: str, value: bool, device: str = "cuda"
) -> dict[str, Any]:
    """The record of one family at one shape."""
    point = {
        "kind": "point",
        "family": family,
        "shape": shape.name,
        "sizes": list(shape.sizes),
        "gradients": shape.gradients,
        "precision": precision,
        "value": value,
    }
    try:
        with force_family(family):
            errors = check(shape, precision, value, device)
            return point | {"errors": errors} | time_point(shape, precision, value, device)
    except HandedOver as reason:
        return point | {"not_served": str(reason)}
    # Triton's errors have no common base, and the other points are worth measuring
    except Exception:
        return point | {"error": records.format_failure()}


def main(arguments: list[str]) -> int:
    """Measure a family; 1 if the device was lost on the way."""
    family, *main_only = arguments
    begun = records.find_begun()
    for shape, precision, value in list_points(family, MAIN if main_only else TIMED):
        name = f"{family}, {shape.name}, {precision}{', value' if value else ''}"
        if name in begun:
            continue
        records.append({"kind": "start", "name": name})
        point = measure_point(family, shape, precision, value)
        records.append(point | {"name": name})
        if "error" in point:
            torch.cuda.synchronize()  # raises if the device is lost: the process must end
        torch.cuda.empty_cache()
        if main_only and value and "not_served" not in point:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
