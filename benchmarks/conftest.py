"""How all benchmarks time: peers in turn in one run, the device synchronised, medians."""

import os
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch

ROUNDS = 7


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Results name the hardware, not the host."""
    machine_info.pop("node", None)


@pytest.fixture
def one_core() -> Iterator[None]:
    """Restrict this process and its children to one core, and torch to one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


@pytest.fixture
def time_in_turn(benchmark) -> Callable[..., dict[str, float]]:
    """Time several functions in turn, round by round: a noisy machine then affects all alike.

    Returns the median seconds of each. pytest-benchmark reports the first; the medians and their
    ratios to the first are added to its ``extra_info``.
    """

    def run(
        peers: dict[str, Callable[[], object]], rounds: int = ROUNDS, *, warm_up: bool = True
    ) -> dict[str, float]:
        for function in peers.values() if warm_up else ():
            function()
        seconds: dict[str, list[float]] = {name: [] for name in peers}

        def time_once(name: str) -> None:
            start = time.perf_counter()
            peers[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)

        first, *others = peers

        def time_others() -> None:
            for name in others:
                time_once(name)

        benchmark.pedantic(lambda: time_once(first), setup=time_others, rounds=rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        benchmark.extra_info["median_seconds"] = medians
        benchmark.extra_info["times_faster_than"] = {
            name: medians[name] / medians[first] for name in others
        }
        benchmark.extra_info["threads"] = torch.get_num_threads()
        benchmark.extra_info["torch"] = torch.__version__
        return medians

    return run
