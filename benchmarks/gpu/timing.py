"""How ``make gpu`` measures: correctness first, then time, small kernels in a CUDA graph."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.records import format_failure

Calls = list[Callable[[], object]]
LONGEST = 2.0  # seconds of a timing's rounds together, after the third


def time_in_graph(calls: Calls, rounds: int = 15) -> list[float]:
    """Seconds per call, by round: all calls, each on inputs of its own, in one captured graph."""
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
    return [seconds / len(calls) for seconds in _time_by_events(graph.replay, rounds)]


def time_eagerly(calls: Calls, rounds: int = 5) -> list[float]:
    """Seconds per call as launched from Python, the device synchronised around it."""
    seconds: list[float] = []
    for turn in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        calls[turn % len(calls)]()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if turn > 3 and sum(seconds) > LONGEST:
            break
    return seconds[2:]


def _time_by_events(function: Callable[[], object], rounds: int) -> list[float]:
    function()
    seconds: list[float] = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
        if len(seconds) > 2 and sum(seconds) > LONGEST:
            break
    return seconds


def find_quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of some rounds."""
    if len(seconds) == 1:
        return (seconds[0],) * 3
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high


class Candidate(NamedTuple):
    """A function to compare: ``time`` is called only if ``error``, against float64, < ``bound``."""

    time: Callable[[], list[float]]
    error: Callable[[], float]
    bound: float


def measure(case: str, candidates: dict[str, Candidate], **info: Any) -> dict[str, Any]:
    """Check and then time each candidate; errors and failures are part of the record."""
    medians, quartiles, errors, failures = {}, {}, {}, {}
    for name, (measure_time, error, bound) in candidates.items():
        try:
            errors[name] = error()
            if errors[name] < bound:  # false for NaN
                low, medians[name], high = find_quartiles(measure_time())
                quartiles[name] = [low, high]
            else:
                failures[name] = f"off by {errors[name]:.1e}, expected less than {bound:.1e}"
        # Triton's errors have no common base, and one candidate must not end the others' suite
        except Exception:
            failures[name] = format_failure()
    extra: dict[str, Any] = {"case": case, "median_seconds": medians, "quartiles": quartiles}
    extra |= {"errors": errors, **info}
    if failures:
        extra["error"] = failures
    return {"name": case, "extra_info": extra}


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of ``exact``."""
    return ((result - exact).norm() / exact.norm()).item()
