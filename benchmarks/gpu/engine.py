"""The engine's suite: iterations on generated images, the device synchronised around each."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench_condense import build_published_loop, generate_images
from benchmarks.gpu.records import format_failure
from m3d_fast.config import CondenseConfig
from m3d_fast.engine.condenser import Condenser
from m3d_fast.loaders import MemoryImages, dataset_info
from m3d_fast.loaders.sampling import ClassSampler
from m3d_fast.networks import build_network

# dense bf16 FLOP/s, from the vendor's data sheets
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
# as in ImageNet: each class is permuted once in many iterations, as in a real run
IMAGES_PER_CLASS = 1300
STORED_PER_CLASS = 16  # of large images, whose 1,300 per class would not fit in memory
LARGE = 64  # px from which on fewer are stored


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


class RepeatedImages(MemoryImages):
    """Few stored images per class, each of which stands for many: sampled and served as many."""

    def __init__(self, stored: MemoryImages, per_class: int) -> None:
        self.__dict__ |= vars(stored)
        self._stored = stored.class_sizes[0]
        self.class_sizes = (per_class,) * stored.num_classes
        self._sampler = ClassSampler(self.class_sizes, 0)
        self._first_rows = np.arange(stored.num_classes + 1) * per_class

    def _fetch(self, rows: Any, classes: Sequence[int]) -> Tensor:
        number, image = np.divmod(rows, self.class_sizes[0])
        return super()._fetch(number * self._stored + image % self._stored, classes)


@contextmanager
def float32_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Multiply and convolve float32 in TF32, or truly in float32; cuDNN's default is TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure_kernel_seconds(function: Callable[[], object], calls: int) -> float:
    """Seconds per call in which a kernel runs on the GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        record.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return add_kernels(events) / calls


def add_kernels(events: list[dict[str, Any]]) -> float:
    """Seconds covered by kernels of a trace: copies and ranges do not count, overlaps once."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "kernel"
    )
    covered, last = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return covered / 1e6


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


def _generate_images(case: Case, size: int, device: str) -> MemoryImages:
    channels = dataset_info(case.dataset).channels
    if size < LARGE:
        return generate_images(case.classes, IMAGES_PER_CLASS, channels, size, device)
    stored = generate_images(case.classes, STORED_PER_CLASS, channels, size, device)
    return RepeatedImages(stored, IMAGES_PER_CLASS)


def _measure_gpu_use(flops: float) -> dict[str, float | None]:
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in BF16_PEAK.items() if key in name), None)
    return {
        "share_of_bf16_peak": flops / peak if peak else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def measure_case(case: Case, device: str = "cuda", rounds: int = 5) -> dict[str, Any]:
    """One record: seconds of an iteration, of what precedes it, and the figures computed from them.

    ``setup_seconds`` finds the chunk and allocates; ``first_seconds`` compiles and captures.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with _build_condenser(case, device, "bf16", fast=True) as condenser:

        def step() -> object:
            return condenser.step(0, value=False)

        extra: dict[str, Any] = {"case": case.name}
        extra["setup_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        step()
        _synchronize(device)
        extra["first_seconds"] = time.perf_counter() - start
        seconds = time_calls(step, device, rounds)
        flops = count_network_flops(condenser) / seconds
        extra |= {
            "chunk": max(map(len, condenser.chunks)),
            "images_per_second": condenser.images_per_step / seconds,
            "network_flop_per_second": flops,
        }
        if device == "cuda":
            extra["gpu_busy"] = measure_kernel_seconds(step, 3) / seconds
            extra |= _measure_gpu_use(flops)
    medians = {"m3d_fast, bf16, compiled, CUDA graphs": seconds}
    if case.iterations:
        extra["projected_hours"] = case.iterations * seconds / 3600
        extra["projected_iterations"] = case.iterations
    if case.loop:
        loops = _time_loops(case, device, min(rounds, 3))
        extra["times_faster_than_loop"] = loops["published loop, float32"] / seconds
        medians |= loops
    return {"name": case.name, "extra_info": extra | {"median_seconds": medians}}


def _time_loops(case: Case, device: str, rounds: int) -> dict[str, float]:
    """The published loop, truly in float32 and, on a GPU, in TF32 too."""
    plain = _build_condenser(case, device, "fp32", fast=False)
    loop = build_published_loop(plain, _generate_images(case, plain.config.size, device))
    medians = {}
    for name, tf32 in (("float32", False), ("TF32", True)):
        if device == "cuda" or not tf32:
            with float32_arithmetic(tf32=tf32):
                medians[f"published loop, {name}"] = time_calls(lambda: loop(0), device, rounds)
    return medians


def measure_number(number: int) -> dict[str, Any]:
    """A case by its place; the record of one that cannot run carries its error."""
    case = CASES[number]
    try:
        return measure_case(case)
    # whatever it is, it is recorded
    except Exception:
        info = {"case": case.name, "median_seconds": {}, "error": format_failure()}
        return {"name": case.name, "extra_info": info}
