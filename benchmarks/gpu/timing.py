"""How ``make gpu`` measures: correctness first, then time, small kernels in a CUDA graph."""

import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Calls = list[Callable[[], object]]


def time_in_graph(calls: Calls, rounds: int = 15) -> float:
    """Median seconds per call: all calls, each on inputs of its own, in one captured graph."""
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
    return _time_by_events(graph.replay, rounds) / len(calls)


def time_eagerly(calls: Calls, rounds: int = 5) -> float:
    """Median seconds per call as launched from Python, the device synchronised around it."""
    seconds = []
    for turn in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        calls[turn % len(calls)]()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def _time_by_events(function: Callable[[], object], rounds: int) -> float:
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


def format_failure() -> str:
    """The traceback of the exception being handled, its last lines."""
    return traceback.format_exc()[-4000:]


class Candidate(NamedTuple):
    """A function to compare: ``time`` is called only if ``error``, against float64, < ``bound``."""

    time: Callable[[], float]
    error: Callable[[], float]
    bound: float


def measure(case: str, candidates: dict[str, Candidate], **info: Any) -> dict[str, Any]:
    """Check and then time each candidate; errors and failures are part of the record."""
    medians, errors, failures = {}, {}, {}
    for name, (measure_time, error, bound) in candidates.items():
        try:
            errors[name] = error()
            if errors[name] < bound:  # false for NaN
                medians[name] = measure_time()
            else:
                failures[name] = f"off by {errors[name]:.1e}, expected less than {bound:.1e}"
        # Triton's errors have no common base, and one candidate must not end the others' suite
        except Exception:
            failures[name] = format_failure()
    extra: dict[str, Any] = {"case": case, "median_seconds": medians, "errors": errors, **info}
    if failures:
        extra["error"] = failures
    return {"name": case, "extra_info": extra}


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of ``exact``."""
    return ((result - exact).norm() / exact.norm()).item()
