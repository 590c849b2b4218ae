"""How ``make gpu`` measures: right first, then timed, small kernels in a CUDA graph."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Calls = list[Callable[[], object]]


def graphed(calls: Calls, rounds: int = 15) -> float:
    """Median seconds per call: all calls, on inputs of their own, in one captured graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in [*calls[:1] * 2, *calls]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return _events(graph.replay, rounds) / len(calls)


def eager(calls: Calls, rounds: int = 5) -> float:
    """Median seconds per call as launched from Python, the device synchronised around it."""
    taken = []
    for turn in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        calls[turn % len(calls)]()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def _events(function: Callable[[], object], rounds: int) -> float:
    function()
    milliseconds = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return statistics.median(milliseconds) / 1e3


class Measured(NamedTuple):
    """``time`` is asked only if ``error`` against float64 is under ``bound``."""

    time: Callable[[], float]
    error: Callable[[], float]
    bound: float


def record(case: str, measured: dict[str, Measured], **info: Any) -> dict[str, Any]:
    """Prove each right, then time it; what is wrong or cannot run is noted, not hidden."""
    medians, errors, failures = {}, {}, {}
    for name, (take_time, error, bound) in measured.items():
        try:
            errors[name] = error()
            if errors[name] < bound:  # not so if it is NaN
                medians[name] = take_time()
            else:
                failures[name] = f"off by {errors[name]:.1e}, expected less than {bound:.1e}"
        except (RuntimeError, ValueError, TypeError) as wrong:
            failures[name] = f"{type(wrong).__name__}: {str(wrong)[:300]}"
    extra: dict[str, Any] = {"case": case, "median_seconds": medians, "errors": errors, **info}
    if failures:
        extra["error"] = failures
    return {"name": case, "extra_info": extra}


def off(ours: Tensor, exact: Tensor) -> float:
    """Relative error of all numbers together."""
    return ((ours - exact).norm() / exact.norm()).item()
