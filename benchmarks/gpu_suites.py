"""The GPU benchmarks: small kernels by CUDA graph on inputs that are not in the L2 cache."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.memory import peak_bytes
from m3d_fast.kernels import KID, Gaussian, Polynomial, mmd2, mmd2_and_grad, permutation_test

COLD_BYTES = 160 * 2**20  # inputs in turn, three times the 50 MB of an H100's cache
GRADIENT_SHAPES = [
    (10, 256, 40, 2048),
    (100, 64, 90, 512),
    (1000, 64, 90, 512),
    (10, 128, 90, 8192),
    (10, 256, 200, 2048),
    (10, 256, 4, 2048),
]
# of the norm of the gradient, against float64
BOUNDS = {"highest": 2e-6, "high": 3e-5, "medium": 1.5e-2}
PRECISIONS = ("highest", "high", "medium")
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


def record(case: str, functions: dict[str, Callable[[], float]], **info: Any) -> dict[str, Any]:
    """Time each; what cannot run here is noted, not hidden."""
    medians, failures = {}, {}
    for name, measure in functions.items():
        try:
            medians[name] = measure()
        except (RuntimeError, ValueError, TypeError) as error:
            failures[name] = f"{type(error).__name__}: {str(error)[:300]}"
    extra: dict[str, Any] = {"case": case, "median_seconds": medians, **info}
    if failures:
        extra["error"] = failures
    return {"name": case, "extra_info": extra}


def features(classes: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    real = torch.randn(classes, n, d, device="cuda").relu()
    return real, (torch.randn(classes, m, d, device="cuda") + 0.1).relu()


def gradient_error(real: Tensor, synthetic: Tensor, precision: Any) -> float:
    """Of the norm, on at most eight classes, against the closed form in float64."""
    real, synthetic = real[:8], synthetic[:8]
    _, exact = peers.closed_form(real.double(), synthetic.double())
    _, gradient = mmd2_and_grad(real, synthetic, precision=precision)
    return ((gradient - exact).norm() / exact.norm()).item()


def gradients() -> Iterator[dict[str, Any]]:
    """The op at three precisions, plain torch in a graph, torch.compile, and the loop in use."""
    for shape in GRADIENT_SHAPES:
        real, synthetic = features(*shape)
        errors = {name: gradient_error(real, synthetic, name) for name in PRECISIONS}
        wrong = {name: e for name, e in errors.items() if not e < BOUNDS[name]}
        one = 4 * (real.numel() + synthetic.numel())
        copies = max(2, min(32, COLD_BYTES // one))
        inputs = [(real.clone(), synthetic.clone()) for _ in range(copies)]

        def on_each(step: Callable[[Tensor, Tensor], object], pairs: Any = inputs) -> Calls:
            return [lambda pair=pair: step(*pair) for pair in pairs]

        yield record(
            f"gradient, C N M D = {shape}", _gradient_peers(on_each), gradient_error=errors
        )
        if wrong:
            yield {"name": f"{shape}: wrong", "extra_info": {"error": wrong, "median_seconds": {}}}


def _gradient_peers(on_each: Callable[..., Calls]) -> dict[str, Callable[[], float]]:
    batched = peers.differentiated(peers.batched_losses)
    loop = peers.differentiated(peers.loop_losses)
    compiled = torch.compile(batched, dynamic=False)

    def ours(precision: Any, value: bool) -> Callable[[], float]:
        def step(x: Tensor, y: Tensor) -> object:
            return mmd2_and_grad(x, y, value=value, precision=precision)

        return lambda: graphed(on_each(step))

    functions = {f"m3d_fast, {name}": ours(name, False) for name in PRECISIONS}
    functions["m3d_fast, highest, with the value"] = ours("highest", True)
    functions["closed form in plain torch, CUDA graph"] = lambda: graphed(
        on_each(peers.closed_form)
    )
    functions["batched, torch.compile"] = lambda: eager(on_each(compiled))
    functions["loop over classes"] = lambda: eager(on_each(loop), rounds=2)
    return functions


def cmmd() -> Iterator[dict[str, Any]]:
    """The value alone: equal to float64 on few rows, timed and measured in memory on many."""
    kernel = Gaussian(sigma=10.0, scales=(1.0,))
    x, y = (
        torch.nn.functional.normalize(torch.randn(50_000, 1024, device="cuda") + shift, dim=-1)
        for shift in (0.0, 0.02)
    )
    few = x[:3000], y[:3000]
    exact = mmd2(*(side.double() for side in few), kernel)
    errors: dict[str, float] = {}
    functions: dict[str, Callable[[], float]] = {}
    peaks: dict[str, float] = {}
    for name in PRECISIONS:
        errors[name] = (mmd2(*few, kernel, precision=name) - exact).abs().item()
        call = lambda name=name: mmd2(x, y, kernel, precision=name)  # noqa: E731
        functions[f"m3d_fast, {name}"] = lambda call=call: eager([call])
        peaks[f"m3d_fast, {name}"] = peak_bytes(call, "cuda") / 2**20
    published = lambda: peers.published_cmmd(*few)  # noqa: E731
    yield record("CMMD, 50k + 50k rows of 1024", functions, peak_mb=peaks, value_error=errors)
    few_ours = {"m3d_fast, highest": lambda: eager([lambda: mmd2(*few, kernel)])}
    few_ours["published formulation"] = lambda: eager([published])
    yield record("CMMD, 3k + 3k rows of 1024", few_ours)


def kid() -> Iterator[dict[str, Any]]:
    """The unbiased cubic MMD^2 of 100 subsets of 1000."""
    x, y = torch.randn(2, 100, 1000, 2048, device="cuda").relu()
    exact = peers.published_kid(x[0].double(), y[0].double())
    errors, functions = {}, {}
    for name in PRECISIONS:

        def call(precision: Any = name) -> Tensor:
            return mmd2(x, y, Polynomial(), estimator="unbiased", precision=precision)

        errors[name] = ((call()[0] - exact).abs() / exact.abs()).item()
        functions[f"m3d_fast, {name}"] = lambda call=call: eager([call])
    functions["published formulation, subset by subset"] = lambda: eager(
        [lambda: [peers.published_kid(a, b) for a, b in zip(x, y, strict=True)]], rounds=2
    )
    yield record("KID, 100 subsets of 1000 rows of 2048", functions, value_error=errors)


def two_sample() -> Iterator[dict[str, Any]]:
    """Both gradients, and permutations."""
    for n, d in ((5000, 10), (20_000, 100)):
        x, y = torch.randn(2, n, d, device="cuda")
        functions = {
            f"m3d_fast, {name}": lambda name=name, x=x, y=y: eager(
                [lambda: mmd2_and_grad(x, y, wrt="both", precision=name)]
            )
            for name in PRECISIONS
        }
        yield record(f"two samples, {n} + {n} rows of {d}, both gradients", functions)
    x, y = torch.randn(2, 10_000, 50, device="cuda")
    tests = {
        "m3d_fast, permutation_test": lambda: eager(
            [lambda: permutation_test(x, y, permutations=1000)], rounds=2
        )
    }
    yield record("1000 permutations of 10k + 10k rows of 50, drawing included", tests)


def libraries() -> Iterator[dict[str, Any]]:
    """GeomLoss, KeOps and torchmetrics; what is not installed is left out with a line."""
    real, synthetic = features(10, 64, 90, 512)
    _, exact = peers.closed_form(real.double(), synthetic.double())

    def checked(step: peers.Step) -> float:
        error = ((step(real, synthetic)[1] - exact).norm() / exact.norm()).item()
        if not error < 1e-3:
            raise ValueError(f"its gradient is {error:.1e} off")
        return eager([lambda: step(real, synthetic)], rounds=2)

    functions: dict[str, Callable[[], float]] = {
        "m3d_fast": lambda: eager([lambda: mmd2_and_grad(real, synthetic)])
    }
    for name, step in peers.other_libraries():
        functions[name] = lambda step=step: checked(step)
    yield record("value and gradient, C N M D = (10, 64, 90, 512)", functions)
    x, y = torch.randn(2, 5000, 2048, device="cuda").relu()
    metrics = {"m3d_fast": KID(subsets=100, subset_size=1000)}
    for side, is_real in ((x, True), (y, False)):
        metrics["m3d_fast"].update(side, real=is_real)
    calls: dict[str, Callable[[], object]] = {"m3d_fast": metrics["m3d_fast"].compute}
    theirs = peers.torchmetrics_kid(x, y, subsets=100, subset_size=1000)
    if theirs is not None:
        calls["torchmetrics"] = theirs
    kids = {name: lambda call=call: eager([call], rounds=2) for name, call in calls.items()}
    yield record("KID, 100 subsets of 1000 of 5000 rows of 2048, drawing included", kids)


SUITES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "gradient": gradients,
    "cmmd": cmmd,
    "kid": kid,
    "two_sample": two_sample,
    "libraries": libraries,  # last: KeOps compiles, for as long as it takes
}
