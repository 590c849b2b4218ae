"""The engine's benchmarks of ``make gpu``: iterations on generated images, device synchronised."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_condense import generated, published_step
from m3d_fast.config import CondenseConfig
from m3d_fast.engine.condenser import Condenser
from m3d_fast.loaders import RealImages, dataset_info
from m3d_fast.networks import build_network

# dense bf16, FLOP/s, from the vendor's data sheets
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
IMAGES_PER_CLASS = 16  # generated; more would be drawn from all the same


@dataclass(frozen=True)
class Case:
    """One shape; ``loop``: time the published-style loop too; ``iterations``: those of a run."""

    name: str
    dataset: str
    classes: int
    ipc: int
    loop: bool = False
    iterations: int | None = None
    size: int | None = None
    real_batch: int | None = None


CASES = (
    Case("Fashion-MNIST, IPC 10", "fashionmnist", 10, 10, loop=True, iterations=10_000),
    Case("CIFAR-10, IPC 10", "cifar10", 10, 10, loop=True, iterations=10_000),
    Case("ResNetAP-10, 224 px, 100 classes, IPC 10", "imagenet100", 100, 10, iterations=1_000),
    Case("ResNetAP-10, 224 px, 1000 classes, IPC 10", "imagenet1k", 1000, 10, iterations=1_000),
)


def seconds_per_call(function: Callable[[], object], device: str, rounds: int) -> float:
    """Median of synchronised calls, after one to warm up."""
    taken = []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def busy_share(function: Callable[[], object], device: str, calls: int) -> float:
    """Time in kernels over the time of several calls in a row; on a CPU 0."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        _wait(device)
        seconds = time.perf_counter() - start
    return sum(event.self_device_time_total for event in record.key_averages()) / 1e6 / seconds


def network_flops(condenser: Condenser) -> float:
    """Of an iteration: a forward per real, a forward and a backward to the pixels per synthetic."""
    config, channels = condenser.config, condenser.real.image_shape[0]
    with torch.device("meta"):
        network = build_network(config.network, channels, config.size, 2)
        image = torch.empty(1, channels, config.size, config.size)
    with FlopCounterMode(display=False) as counter:
        network.embed(image)  # type: ignore[operator]
    classes = len(condenser.classes)
    real = classes * config.real_batch
    return counter.get_total_flops() * (real + 2 * (condenser.images_per_step - real))


def _condenser(case: Case, device: str, precision: str, fast: bool) -> Condenser:
    given: dict[str, Any] = {"size": case.size, "real_batch": case.real_batch}
    config = CondenseConfig(
        dataset=case.dataset,
        ipc=case.ipc,
        device=device,
        precision=precision,
        compile=fast,
        cuda_graphs=fast and device == "cuda",
        **given,
    ).resolved()
    return Condenser(config, _images(case, config.size, device))


def _images(case: Case, size: int, device: str) -> RealImages:
    channels = dataset_info(case.dataset).channels
    return generated(case.classes, IMAGES_PER_CLASS, channels, size, device)


def measured(case: Case, device: str = "cuda", rounds: int = 5) -> dict[str, Any]:
    """One record: seconds of an iteration, and what follows from them."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    medians: dict[str, float] = {}
    with _condenser(case, device, "bf16", fast=True) as condenser:

        def step() -> object:
            return condenser.step(0, value=False)

        medians["m3d_fast, bf16, compiled, CUDA graphs"] = seconds_per_call(step, device, rounds)
        taken = next(iter(medians.values()))
        flops = network_flops(condenser) / taken
        extra: dict[str, Any] = {
            "case": case.name,
            "chunk": max(map(len, condenser.chunks)),
            "images_per_second": condenser.images_per_step / taken,
            "network_flop_per_second": flops,
            "gpu_busy": busy_share(step, device, 3),
        }
    if device == "cuda":
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in BF16_PEAK.items() if key in name), None)
        extra["share_of_bf16_peak"] = flops / peak if peak else None
        extra["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if case.iterations:
        extra["projected_hours"] = case.iterations * taken / 3600
        extra["projected_iterations"] = case.iterations
    if case.loop:
        plain = _condenser(case, device, "fp32", fast=False)
        loop = published_step(plain, _images(case, plain.config.size, device))
        name = "published loop, float32"
        medians[name] = seconds_per_call(lambda: loop(0), device, min(rounds, 3))
        extra["times_faster_than_loop"] = medians[name] / taken
    return {"name": case.name, "extra_info": extra | {"median_seconds": medians}}


def engine() -> Iterator[dict[str, Any]]:
    """Every case; what cannot run here is noted, not hidden."""
    for case in CASES:
        torch.compiler.reset()
        try:
            yield measured(case)
        except (RuntimeError, ValueError, TypeError) as error:
            message = f"{type(error).__name__}: {str(error)[:300]}"
            yield {
                "name": case.name,
                "extra_info": {"case": case.name, "median_seconds": {}, "error": message},
            }


SUITES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"engine": engine}
