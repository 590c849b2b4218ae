"""The engine's suite: iterations on generated images, the device synchronised around each."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_condense import build_published_loop, generate_images
from benchmarks.gpu.timing import format_failure
from m3d_fast.config import CondenseConfig
from m3d_fast.engine.condenser import Condenser
from m3d_fast.loaders import RealImages, dataset_info
from m3d_fast.networks import build_network

# dense bf16 FLOP/s, from the vendor's data sheets
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
IMAGES_PER_CLASS = 16  # generated; larger batches draw them repeatedly


@dataclass(frozen=True)
class Case:
    """One shape to measure.

    Attributes:
        loop: time the published-style loop over classes too.
        iterations: of a whole run, whose duration is projected.
        size: side in pixels; None for the data set's.
        real_batch: real images per class; None for the preset's.
    """

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


def time_calls(function: Callable[[], object], device: str, rounds: int) -> float:
    """Median seconds of synchronised calls, after one to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        _synchronize(device)
        start = time.perf_counter()
        function()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_busy_share(function: Callable[[], object], device: str, calls: int) -> float:
    """Time in GPU kernels over the time of several consecutive calls; 0 on a CPU."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, acc_events=True) as record:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        _synchronize(device)
        seconds = time.perf_counter() - start
    return sum(event.self_device_time_total for event in record.key_averages()) / 1e6 / seconds


def count_network_flops(condenser: Condenser) -> float:
    """FLOPs of an iteration: a forward pass per image, and a backward pass per synthetic image."""
    config, channels = condenser.config, condenser.real.image_shape[0]
    with torch.device("meta"):
        network = build_network(config.network, channels, config.size, 2)
        image = torch.empty(1, channels, config.size, config.size)
    with FlopCounterMode(display=False) as counter:
        network.embed(image)  # type: ignore[operator]
    classes = len(condenser.classes)
    real = classes * config.real_batch
    return counter.get_total_flops() * (real + 2 * (condenser.images_per_step - real))


def _build_condenser(case: Case, device: str, precision: str, fast: bool) -> Condenser:
    sizes: dict[str, Any] = {"size": case.size, "real_batch": case.real_batch}
    config = CondenseConfig(
        dataset=case.dataset,
        ipc=case.ipc,
        device=device,
        precision=precision,
        compile=fast,
        cuda_graphs=fast and device == "cuda",
        **sizes,
    ).resolve()
    return Condenser(config, _generate_images(case, config.size, device))


def _generate_images(case: Case, size: int, device: str) -> RealImages:
    channels = dataset_info(case.dataset).channels
    return generate_images(case.classes, IMAGES_PER_CLASS, channels, size, device)


def _measure_gpu_use(flops: float) -> dict[str, float | None]:
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in BF16_PEAK.items() if key in name), None)
    return {
        "share_of_bf16_peak": flops / peak if peak else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def measure_case(case: Case, device: str = "cuda", rounds: int = 5) -> dict[str, Any]:
    """One record: seconds of an iteration, and the figures computed from them."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    medians: dict[str, float] = {}
    with _build_condenser(case, device, "bf16", fast=True) as condenser:

        def step() -> object:
            return condenser.step(0, value=False)

        medians["m3d_fast, bf16, compiled, CUDA graphs"] = time_calls(step, device, rounds)
        seconds = next(iter(medians.values()))
        flops = count_network_flops(condenser) / seconds
        extra: dict[str, Any] = {
            "case": case.name,
            "chunk": max(map(len, condenser.chunks)),
            "images_per_second": condenser.images_per_step / seconds,
            "network_flop_per_second": flops,
            "gpu_busy": measure_busy_share(step, device, 3),
        }
    if device == "cuda":
        extra |= _measure_gpu_use(flops)
    if case.iterations:
        extra["projected_hours"] = case.iterations * seconds / 3600
        extra["projected_iterations"] = case.iterations
    if case.loop:
        plain = _build_condenser(case, device, "fp32", fast=False)
        loop = build_published_loop(plain, _generate_images(case, plain.config.size, device))
        name = "published loop, float32"
        medians[name] = time_calls(lambda: loop(0), device, min(rounds, 3))
        extra["times_faster_than_loop"] = medians[name] / seconds
    return {"name": case.name, "extra_info": extra | {"median_seconds": medians}}


def measure_engine() -> Iterator[dict[str, Any]]:
    """Every case; the record of one that cannot run carries its error."""
    for case in CASES:
        torch.compiler.reset()
        try:
            yield measure_case(case)
        # whatever it is, the other cases are measured
        except Exception:
            info = {"case": case.name, "median_seconds": {}, "error": format_failure()}
            yield {"name": case.name, "extra_info": info}


SUITES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"engine": measure_engine}
