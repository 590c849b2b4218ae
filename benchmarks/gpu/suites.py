"""The op's suites; small kernels are timed on inputs that are not in the L2 cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import peers
from benchmarks.gpu.sweep import (
    COLD_BYTES,
    GRADIENT_BOUNDS,
    POLYNOMIAL_BOUNDS,
    VALUE_BOUNDS,
)
from benchmarks.gpu.timing import (
    Calls,
    Candidate,
    measure,
    relative_error,
    time_eagerly,
    time_in_graph,
)
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
PEER_BOUND = 1e-3  # the error of distances in float32
CMMD_KERNEL = Gaussian(sigma=10.0, scales=(1.0,))


def draw_features(classes: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    real = torch.randn(classes, n, d, device=DEVICE).relu()
    return real, (torch.randn(classes, m, d, device=DEVICE) + 0.1).relu()


def measure_gradients() -> Iterator[dict[str, Any]]:
    """The op at three precisions, plain torch in a graph, torch.compile, and the published loop."""
    for shape in GRADIENT_SHAPES:
        real, synthetic = draw_features(*shape)
        copies = max(2, min(32, COLD_BYTES // (4 * (real.numel() + synthetic.numel()))))
        pairs = [(real.clone(), synthetic.clone()) for _ in range(copies)]
        yield measure(f"gradient, C N M D = {shape}", _list_gradient_candidates(pairs))


def _list_gradient_candidates(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Candidate]:
    first = pairs[0]
    few = [side[:8].double() for side in first]
    value, gradient = peers.closed_form(*few)

    def make_candidate(
        function: peers.OpOrPeer,
        bound: float,
        time: Callable[..., list[float]] = time_in_graph,
        **rounds: int,
    ) -> Candidate:
        def error() -> float:
            losses, gradients = function(*first)
            if losses is not None and not (losses[:8] - value).abs().max() < PEER_BOUND:
                raise ValueError(f"its value is {(losses[:8] - value).abs().max():.1e} off")
            return relative_error(gradients[:8], gradient)

        calls: Calls = [lambda pair=pair: function(*pair) for pair in pairs]
        return Candidate(lambda: time(calls, **rounds), error, bound)

    def ours(precision: Any, value: bool) -> peers.OpOrPeer:
        return lambda x, y: mmd2_and_grad(x, y, value=value, precision=precision)

    compiled = torch.compile(peers.differentiate(peers.batched_losses), dynamic=False)
    loop = peers.differentiate(peers.loop_losses)
    return {
        **{
            f"m3d_fast, {p}": make_candidate(ours(p, False), GRADIENT_BOUNDS[p]) for p in PRECISIONS
        },
        "m3d_fast, highest, with the value": make_candidate(
            ours("highest", True), GRADIENT_BOUNDS["highest"]
        ),
        "closed form in plain torch, CUDA graph": make_candidate(peers.closed_form, PEER_BOUND),
        "batched, torch.compile": make_candidate(compiled, PEER_BOUND, time_eagerly),
        "loop over classes": make_candidate(loop, PEER_BOUND, time_eagerly, rounds=2),
    }


def compute_exact_value(x: Tensor, y: Tensor, kernel: Gaussian, rows: int = 2000) -> float:
    """Biased MMD^2 in float64, in pieces of ``rows``."""

    def mean_k(a: Tensor, b: Tensor) -> Tensor:
        b = b.double()
        sums = [gram(part.double(), b, kernel).sum() for part in a.split(rows)]
        return torch.stack(sums).sum() / (len(a) * len(b))

    return (mean_k(x, x) + mean_k(y, y) - 2 * mean_k(x, y)).item()


def measure_cmmd() -> Iterator[dict[str, Any]]:
    """The value alone, time and memory; on fewer rows also the published formulation."""
    rows, columns = CMMD_SHAPE
    x, y = (
        torch.nn.functional.normalize(torch.randn(rows, columns, device=DEVICE) + shift, dim=-1)
        for shift in (0.0, 0.02)
    )
    few = x[:3000], y[:3000]
    for samples, published in (((x, y), False), (few, True)):
        exact = compute_exact_value(*samples, CMMD_KERNEL)
        candidates, peaks = {}, {}
        for name in PRECISIONS[: 1 if published else None]:

            def call(precision: Any = name, samples: Any = samples) -> Tensor:
                return mmd2(*samples, CMMD_KERNEL, precision=precision)

            candidates[f"m3d_fast, {name}"] = _check_value(call, exact, VALUE_BOUNDS[name])
            peaks[f"m3d_fast, {name}"] = peak_bytes(call, DEVICE) / 2**20
        if published:

            def theirs() -> Tensor:
                return peers.published_cmmd(*few) / 1000

            candidates["published formulation"] = _check_value(theirs, exact, PEER_BOUND)
        case = f"CMMD, {len(samples[0])} + {len(samples[1])} rows of {columns}"
        yield measure(case, candidates, peak_mb=peaks)


def _check_value(
    call: Callable[[], Tensor], exact: float, bound: float, rounds: int = 5, item: int | None = None
) -> Candidate:
    def error() -> float:
        return abs((call() if item is None else call()[item]).item() - exact)

    return Candidate(lambda: time_eagerly([call], rounds=rounds), error, bound)


def measure_kid() -> Iterator[dict[str, Any]]:
    """The unbiased cubic MMD^2 of many subsets."""
    subsets, rows, columns = KID_SHAPE
    x, y = torch.randn(2, subsets, rows, columns, device=DEVICE).relu()
    y += 0.1
    exact = peers.published_kid(x[0].double(), y[0].double()).item()
    candidates = {}
    for name in PRECISIONS:

        def call(precision: Any = name) -> Tensor:
            return mmd2(x, y, Polynomial(), estimator="unbiased", precision=precision)

        candidates[f"m3d_fast, {name}"] = _check_value(call, exact, POLYNOMIAL_BOUNDS[name], item=0)

    def published() -> Tensor:
        return torch.stack([peers.published_kid(a, b) for a, b in zip(x, y, strict=True)])

    candidates["published formulation, subset by subset"] = _check_value(
        published, exact, PEER_BOUND, rounds=2, item=0
    )
    yield measure(f"KID, {subsets} subsets of {rows} rows of {columns}", candidates)


def measure_two_sample() -> Iterator[dict[str, Any]]:
    """Both gradients."""
    for n, d in TWO_SAMPLE_SHAPES:
        x, y = torch.randn(2, n, d, device=DEVICE)
        y += 0.1
        few = x[:5000], y[:5000]  # more would not fit in memory in float64
        exact = reference.mmd2(
            *(side.double() for side in few), peers.M3D_RULE, grad_x=True, grad_y=True
        )
        candidates = {}
        for name in PRECISIONS:

            def call(precision: Any = name, samples: Any = (x, y)) -> Any:
                return mmd2_and_grad(*samples, wrt="both", precision=precision)

            def error(call: Any = call, few: Any = few, exact: Any = exact) -> float:
                _, sides = call(samples=few)
                pairs = zip(sides, (exact.grad_x, exact.grad_y), strict=True)
                return max(relative_error(side, truth) for side, truth in pairs)

            candidates[f"m3d_fast, {name}"] = Candidate(
                lambda call=call: time_eagerly([call]), error, GRADIENT_BOUNDS[name]
            )
        yield measure(f"two samples, {n} + {n} rows of {d}, both gradients", candidates)


def measure_permutations() -> Iterator[dict[str, Any]]:
    """Checked against the CPU on few rows, with the same permutations."""
    n, d, permutations = PERMUTATION_SHAPE
    x, y = torch.randn(2, n, d, device=DEVICE)

    def compare_with_cpu() -> float:
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

    timing = Candidate(
        lambda: time_eagerly([test], rounds=2), compare_with_cpu, VALUE_BOUNDS["highest"]
    )
    yield measure(
        f"{permutations} permutations of {n} + {n} rows of {d}, drawing included",
        {"m3d_fast, permutation_test": timing},
    )


def measure_libraries() -> Iterator[dict[str, Any]]:
    """GeomLoss, KeOps and torchmetrics; a line names those that are not installed."""
    real, synthetic = draw_features(10, 64, 90, 512)
    _, exact = peers.closed_form(real.double(), synthetic.double())
    functions: dict[str, peers.OpOrPeer] = {
        "m3d_fast": mmd2_and_grad,
        **dict(peers.find_libraries()),
    }
    candidates = {
        name: Candidate(
            lambda function=function: time_eagerly([lambda: function(real, synthetic)], rounds=2),
            lambda function=function: relative_error(function(real, synthetic)[1], exact),
            GRADIENT_BOUNDS["highest"] if name == "m3d_fast" else PEER_BOUND,
        )
        for name, function in functions.items()
    }
    yield measure("value and gradient, C N M D = (10, 64, 90, 512)", candidates)
    yield _measure_kid_of_libraries()


def _measure_kid_of_libraries() -> dict[str, Any]:
    """Checked on one subset of all rows, where nothing is random; many subsets are timed."""
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
        return peers.make_torchmetrics_kid(x, y, subsets=count, subset_size=rows)

    candidates = {}
    for name, metric, bound in (
        ("m3d_fast", ours, POLYNOMIAL_BOUNDS["highest"]),
        ("torchmetrics", theirs, PEER_BOUND),
    ):
        whole, drawn = metric(x[:rows], y[:rows], 1), metric(x, y, subsets)
        if whole is not None and drawn is not None:
            candidates[name] = Candidate(
                lambda drawn=drawn: time_eagerly([drawn], rounds=2),
                lambda whole=whole: abs(whole().item() - exact),
                bound,
            )
    case = f"KID, {subsets} subsets of {rows} of {5 * rows} rows of {columns}, drawing included"
    return measure(case, candidates)


SUITES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "gradient": measure_gradients,
    "cmmd": measure_cmmd,
    "kid": measure_kid,
    "two_sample": measure_two_sample,
    "permutations": measure_permutations,
    "libraries": measure_libraries,  # last: KeOps compiles, without a time limit of its own
}
