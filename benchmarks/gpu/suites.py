"""The op's benchmarks of ``make gpu``, small kernels on inputs that are not in the L2 cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import peers
from benchmarks.gpu.timing import Calls, Measured, eager, graphed, off, record
from benchmarks.memory import peak_bytes
from m3d_fast.kernels import (
    KID,
    Gaussian,
    Polynomial,
    gram,
    mmd2,
    mmd2_and_grad,
    permutation_test,
    reference,
)

DEVICE = "cuda"
COLD_BYTES = 160 * 2**20  # inputs in turn, three times the 50 MB of an H100's cache
GRADIENT_SHAPES = [
    (10, 256, 40, 2048),
    (100, 64, 90, 512),
    (1000, 64, 90, 512),
    (10, 128, 90, 8192),
    (10, 256, 200, 2048),
    (10, 256, 4, 2048),
]
CMMD_SHAPE = (50_000, 1024)
KID_SHAPE = (100, 1000, 2048)  # subsets, rows, columns
TWO_SAMPLE_SHAPES = [(5000, 10), (20_000, 100)]
PERMUTATION_SHAPE = (10_000, 50, 1000)  # rows, columns, permutations
PRECISIONS = ("highest", "high", "medium")
# of the norm of the gradient, and of MMD^2 where k(0) is about 1, against float64
GRADIENT_BOUNDS = {"highest": 2e-6, "high": 3e-5, "medium": 1.5e-2}
VALUE_BOUNDS = {"highest": 5e-6, "high": 5e-6, "medium": 3e-5}
PEER_BOUND = 1e-3  # float32 distances lose that much
KID_BOUNDS = {"highest": 1e-5, "high": 1e-4, "medium": 1e-2}
CMMD_KERNEL = Gaussian(sigma=10.0, scales=(1.0,))


def features(classes: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    real = torch.randn(classes, n, d, device=DEVICE).relu()
    return real, (torch.randn(classes, m, d, device=DEVICE) + 0.1).relu()


def gradients() -> Iterator[dict[str, Any]]:
    """The op at three precisions, plain torch in a graph, torch.compile, and the loop in use."""
    for shape in GRADIENT_SHAPES:
        real, synthetic = features(*shape)
        copies = max(2, min(32, COLD_BYTES // (4 * (real.numel() + synthetic.numel()))))
        pairs = [(real.clone(), synthetic.clone()) for _ in range(copies)]
        yield record(f"gradient, C N M D = {shape}", _gradient_steps(pairs))


def _gradient_steps(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Measured]:
    first = pairs[0]
    few = [side[:8].double() for side in first]
    value, gradient = peers.closed_form(*few)

    def taken(
        step: peers.AnyStep, bound: float, time: Callable[..., float] = graphed, **rounds: int
    ) -> Measured:
        def error() -> float:
            losses, gradients = step(*first)
            if losses is not None and not (losses[:8] - value).abs().max() < PEER_BOUND:
                raise ValueError(f"its value is {(losses[:8] - value).abs().max():.1e} off")
            return off(gradients[:8], gradient)

        calls: Calls = [lambda pair=pair: step(*pair) for pair in pairs]
        return Measured(lambda: time(calls, **rounds), error, bound)

    def ours(precision: Any, value: bool) -> peers.AnyStep:
        return lambda x, y: mmd2_and_grad(x, y, value=value, precision=precision)

    compiled = torch.compile(peers.differentiated(peers.batched_losses), dynamic=False)
    loop = peers.differentiated(peers.loop_losses)
    return {
        **{f"m3d_fast, {p}": taken(ours(p, False), GRADIENT_BOUNDS[p]) for p in PRECISIONS},
        "m3d_fast, highest, with the value": taken(
            ours("highest", True), GRADIENT_BOUNDS["highest"]
        ),
        "closed form in plain torch, CUDA graph": taken(peers.closed_form, PEER_BOUND),
        "batched, torch.compile": taken(compiled, PEER_BOUND, eager),
        "loop over classes": taken(loop, PEER_BOUND, eager, rounds=2),
    }


def exact_value(x: Tensor, y: Tensor, kernel: Gaussian, rows: int = 2000) -> float:
    """Biased MMD^2 in float64, some rows at a time."""

    def mean_k(a: Tensor, b: Tensor) -> Tensor:
        b = b.double()
        sums = [gram(part.double(), b, kernel).sum() for part in a.split(rows)]
        return torch.stack(sums).sum() / (len(a) * len(b))

    return (mean_k(x, x) + mean_k(y, y) - 2 * mean_k(x, y)).item()


def cmmd() -> Iterator[dict[str, Any]]:
    """The value alone: timed and measured in memory, and the published formulation on few rows."""
    rows, columns = CMMD_SHAPE
    x, y = (
        torch.nn.functional.normalize(torch.randn(rows, columns, device=DEVICE) + shift, dim=-1)
        for shift in (0.0, 0.02)
    )
    few = x[:3000], y[:3000]
    for samples, published in (((x, y), False), (few, True)):
        exact = exact_value(*samples, CMMD_KERNEL)
        measured, peaks = {}, {}
        for name in PRECISIONS[: 1 if published else None]:

            def call(precision: Any = name, samples: Any = samples) -> Tensor:
                return mmd2(*samples, CMMD_KERNEL, precision=precision)

            measured[f"m3d_fast, {name}"] = _value(call, exact, VALUE_BOUNDS[name])
            peaks[f"m3d_fast, {name}"] = peak_bytes(call, DEVICE) / 2**20
        if published:

            def theirs() -> Tensor:
                return peers.published_cmmd(*few) / 1000

            measured["published formulation"] = _value(theirs, exact, PEER_BOUND)
        case = f"CMMD, {len(samples[0])} + {len(samples[1])} rows of {columns}"
        yield record(case, measured, peak_mb=peaks)


def _value(
    call: Callable[[], Tensor], exact: float, bound: float, rounds: int = 5, item: int | None = None
) -> Measured:
    def error() -> float:
        return abs((call() if item is None else call()[item]).item() - exact)

    return Measured(lambda: eager([call], rounds=rounds), error, bound)


def kid() -> Iterator[dict[str, Any]]:
    """The unbiased cubic MMD^2 of many subsets."""
    subsets, rows, columns = KID_SHAPE
    x, y = torch.randn(2, subsets, rows, columns, device=DEVICE).relu()
    y += 0.1
    exact = peers.published_kid(x[0].double(), y[0].double()).item()
    measured = {}
    for name in PRECISIONS:

        def call(precision: Any = name) -> Tensor:
            return mmd2(x, y, Polynomial(), estimator="unbiased", precision=precision)

        measured[f"m3d_fast, {name}"] = _value(call, exact, KID_BOUNDS[name], item=0)

    def published() -> Tensor:
        return torch.stack([peers.published_kid(a, b) for a, b in zip(x, y, strict=True)])

    measured["published formulation, subset by subset"] = _value(
        published, exact, PEER_BOUND, rounds=2, item=0
    )
    yield record(f"KID, {subsets} subsets of {rows} rows of {columns}", measured)


def two_sample() -> Iterator[dict[str, Any]]:
    """Both gradients, and permutations."""
    for n, d in TWO_SAMPLE_SHAPES:
        x, y = torch.randn(2, n, d, device=DEVICE)
        y += 0.1
        few = x[:5000], y[:5000]  # float64 has no room for more
        exact = reference.mmd2(
            *(side.double() for side in few), peers.M3D_RULE, grad_x=True, grad_y=True
        )
        measured = {}
        for name in PRECISIONS:

            def call(precision: Any = name, samples: Any = (x, y)) -> Any:
                return mmd2_and_grad(*samples, wrt="both", precision=precision)

            def error(call: Any = call, few: Any = few, exact: Any = exact) -> float:
                _, sides = call(samples=few)
                return max(off(sides[0], exact.grad_x), off(sides[1], exact.grad_y))

            measured[f"m3d_fast, {name}"] = Measured(
                lambda call=call: eager([call]), error, GRADIENT_BOUNDS[name]
            )
        yield record(f"two samples, {n} + {n} rows of {d}, both gradients", measured)
    n, d, permutations = PERMUTATION_SHAPE
    x, y = torch.randn(2, n, d, device=DEVICE)

    def on_cpu_too() -> float:
        few = x[:700], y[:500]
        nulls = [
            permutation_test(
                *(side.to(device) for side in few),
                permutations=100,
                generator=torch.Generator().manual_seed(0),
            ).null.double()
            for device in (DEVICE, "cpu")
        ]
        return (nulls[0].cpu() - nulls[1]).abs().max().item()

    def test() -> object:
        return permutation_test(x, y, permutations=permutations)

    timing = Measured(lambda: eager([test], rounds=2), on_cpu_too, VALUE_BOUNDS["highest"])
    yield record(
        f"{permutations} permutations of {n} + {n} rows of {d}, drawing included",
        {"m3d_fast, permutation_test": timing},
    )


def libraries() -> Iterator[dict[str, Any]]:
    """GeomLoss, KeOps and torchmetrics; what is not installed is left out with a line."""
    real, synthetic = features(10, 64, 90, 512)
    _, exact = peers.closed_form(real.double(), synthetic.double())
    steps: dict[str, peers.AnyStep] = {"m3d_fast": mmd2_and_grad, **dict(peers.other_libraries())}
    measured = {
        name: Measured(
            lambda step=step: eager([lambda: step(real, synthetic)], rounds=2),
            lambda step=step: off(step(real, synthetic)[1], exact),
            GRADIENT_BOUNDS["highest"] if name == "m3d_fast" else PEER_BOUND,
        )
        for name, step in steps.items()
    }
    yield record("value and gradient, C N M D = (10, 64, 90, 512)", measured)
    yield _kid_of_libraries()


def _kid_of_libraries() -> dict[str, Any]:
    """Equal on one subset of all rows, where nothing is drawn; then many subsets are timed."""
    subsets, rows, columns = KID_SHAPE
    x, y = torch.randn(2, 5 * rows, columns, device=DEVICE).relu()
    y += 0.1
    exact = peers.published_kid(x[:rows].double(), y[:rows].double()).item()

    def ours(x: Tensor, y: Tensor, count: int) -> Callable[[], Tensor]:
        metric = KID(subsets=count, subset_size=rows)
        metric.update(x, real=True)
        metric.update(y, real=False)
        return lambda: metric.compute().mean

    def theirs(x: Tensor, y: Tensor, count: int) -> Callable[[], Tensor] | None:
        return peers.torchmetrics_kid(x, y, subsets=count, subset_size=rows)

    measured = {}
    for name, metric, bound in (
        ("m3d_fast", ours, KID_BOUNDS["highest"]),
        ("torchmetrics", theirs, PEER_BOUND),
    ):
        whole, drawn = metric(x[:rows], y[:rows], 1), metric(x, y, subsets)
        if whole is not None and drawn is not None:
            measured[name] = Measured(
                lambda drawn=drawn: eager([drawn], rounds=2),
                lambda whole=whole: abs(whole().item() - exact),
                bound,
            )
    case = f"KID, {subsets} subsets of {rows} of {5 * rows} rows of {columns}, drawing included"
    return record(case, measured)


SUITES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "gradient": gradients,
    "cmmd": cmmd,
    "kid": kid,
    "two_sample": two_sample,
    "libraries": libraries,  # last: KeOps compiles, for as long as it takes
}
