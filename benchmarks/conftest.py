"""The one way benchmarks time: peers in turn in one run, the device synchronised, medians."""

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
    """One core, and one thread of torch, for this process and its children."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


@pytest.fixture
def interleaved(benchmark) -> Callable[..., dict[str, float]]:
    """Time several functions in turn, round by round, so that a noisy machine hurts all alike.

    Returns the median seconds of each; the first is the one pytest-benchmark reports, the others
    and the ratios of medians to the first go to its ``extra_info``.
    """

    def run(peers: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
        for function in peers.values():
            function()  # warm-up
        seconds: dict[str, list[float]] = {name: [] for name in peers}

        def once(name: str) -> None:
            start = time.perf_counter()
            peers[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)

        first, *others = peers

        def round_of_others() -> None:
            for name in others:
                once(name)

        benchmark.pedantic(lambda: once(first), setup=round_of_others, rounds=rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        benchmark.extra_info["median_seconds"] = medians
        benchmark.extra_info["times_faster_than"] = {
            name: medians[name] / medians[first] for name in others
        }
        benchmark.extra_info["threads"] = torch.get_num_threads()
        benchmark.extra_info["torch"] = torch.__version__
        return medians

    return run
