"""How often do two-sample tests find a difference? Ours beside the code of MMD-FUSE and MMDAgg.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.power --out FILE

Every test sees the same pairs of samples, at level 0.05 and with as many permutations. The authors'
code (github.com/antoninschrab/mmdfuse and mmdagg, both need JAX) is named and left out where it is
not installed. Seconds are those of the processor per test, without what JAX takes to compile.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from benchmarks.baselines.peers import import_optional
from m3d_fast.common.files import write_json
from m3d_fast.kernels import (
    Gaussian,
    Kernel,
    Laplacian,
    aggregated_test,
    optimise_bandwidth,
    permutation_test,
    wild_bootstrap_test,
)
from m3d_fast.kernels.two_sample.aggregated import Method
from m3d_fast.run.environment import describe_environment

LEVEL = 0.05
LEFT_OUT = 3  # the digit that one of the samples lacks
MEAN = Gaussian(scales=(1.0,))
COMPILED = ("mmdfuse", "mmdagg")  # once per shape, which is not timed

Rule = Literal["mmdfuse", "mmdagg"]
Pair = tuple[Tensor, Tensor]
Test = Callable[[Tensor, Tensor, int], bool]  # of two samples and a seed: whether it rejects


def draw_blobs(generator: Generator, *, rows: int, stretch: float) -> Pair:
    """3 x 3 round blobs; in the other sample stretched along diagonals, by 0 not at all."""
    centres = torch.randint(0, 3, (2, rows, 2), generator=generator) * 5.0
    x, y = centres + torch.randn(2, rows, 2, generator=generator) * 0.6
    y[:, 1] += (y[:, 0] - centres[1, :, 0]) * stretch
    return x, y


def draw_digits(generator: Generator, *, rows: int) -> Pair:
    """scikit-learn's digits, 8 x 8, and others of which one class is left out."""
    images, labels = _load_digits()
    order = torch.randperm(len(images), generator=generator)
    first, rest = order[:rows], order[rows:]
    return images[first], images[rest[labels[rest] != LEFT_OUT][:rows]]


@functools.cache
def _load_digits() -> Pair:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels)


DATA: dict[str, Callable[[Generator], Pair]] = {
    "blobs": functools.partial(draw_blobs, rows=240, stretch=1.5),
    "blobs, stretched less": functools.partial(draw_blobs, rows=240, stretch=1.0),
    "digits without one class": functools.partial(draw_digits, rows=250),
    "blobs of one distribution": functools.partial(draw_blobs, rows=240, stretch=0.0),
}


def list_published_kernels(x: Tensor, y: Tensor, rule: Rule) -> list[Kernel]:
    """Ten Gaussians and ten Laplacians of the city block's distance, with the code's bandwidths.

    MMD-FUSE: evenly from half the 5 % quantile of the distances to twice their 95 % quantile.
    MMDAgg: geometrically from half the smallest distance between the samples (the 5 % quantile, at
    least 0.1, where that is below 0.1) to twice the largest.
    """
    kernels: list[Kernel] = []
    for norm in (1.0, 2.0):
        if rule == "mmdfuse":
            distances = torch.pdist(torch.cat([x, y]), p=norm)
            ends = torch.quantile(distances[distances > 0], torch.tensor([0.05, 0.95]))
            widths = torch.linspace(ends[0].item() / 2, ends[1].item() * 2, 10)
            scales = (2**-0.5, 2.0)  # exp(-sqrt(2) d / b) and exp(-d^2 / (2 b^2))
        else:
            distances = torch.cdist(x, y, p=norm).flatten()
            low = distances.min()
            if low < 0.1:
                low = distances.quantile(0.05).clamp_min(0.1)
            widths = torch.logspace(*(torch.stack([low / 2, distances.max() * 2]).log10()), 10)
            scales = (1.0, 1.0)  # exp(-d / b) and exp(-d^2 / b^2)
        for width in widths.tolist():
            if norm == 1:
                kernels.append(Laplacian(width * scales[0], "l1"))
            else:
                kernels.append(Gaussian(bandwidth=width**2 * scales[1], scales=(1.0,)))
    return kernels


def list_own_tests(permutations: int) -> dict[str, Test]:
    """The tests of m3d_fast."""

    def options(seed: int) -> dict[str, Any]:
        return {"permutations": permutations, "generator": Generator().manual_seed(seed)}

    def optimised(x: Tensor, y: Tensor, seed: int) -> bool:
        half = len(x) // 2
        kernel = optimise_bandwidth(x[:half], y[:half], steps=40, learning_rate=0.1)
        return permutation_test(x[half:], y[half:], kernel, **options(seed)).p_value <= LEVEL

    def wild(x: Tensor, y: Tensor, seed: int) -> bool:
        generator = Generator().manual_seed(seed)
        result = wild_bootstrap_test(x, y, MEAN, bootstraps=permutations, generator=generator)
        return result.p_value <= LEVEL

    def aggregated(method: Method, rule: Rule | None, x: Tensor, y: Tensor, seed: int) -> bool:
        kernels = None if rule is None else list_published_kernels(x, y, rule)
        return aggregated_test(x, y, kernels, method=method, **options(seed)).p_value <= LEVEL

    return {
        'aggregated_test, "fuse"': functools.partial(aggregated, "fuse", None),
        'aggregated_test, "fuse", kernels of mmdfuse': functools.partial(
            aggregated, "fuse", "mmdfuse"
        ),
        'aggregated_test, "min_p"': functools.partial(aggregated, "min_p", None),
        'aggregated_test, "min_p", kernels of mmdagg': functools.partial(
            aggregated, "min_p", "mmdagg"
        ),
        "permutation_test, bandwidth optimised on half of the rows": optimised,
        "permutation_test, mean bandwidth": lambda x, y, seed: (
            permutation_test(x, y, MEAN, **options(seed)).p_value <= LEVEL
        ),
        "wild_bootstrap_test, mean bandwidth": wild,
    }


def list_references(permutations: int) -> dict[str, Test]:
    """The authors' code, where it is installed."""
    tests: dict[str, Test] = {}
    fuse, agg = import_optional("mmdfuse"), import_optional("mmdagg.jax")
    if fuse is not None:
        from jax import random

        tests["mmdfuse"] = lambda x, y, seed: bool(
            fuse.mmdfuse(
                x.numpy(), y.numpy(), random.PRNGKey(seed), LEVEL, number_permutations=permutations
            )
        )
    if agg is not None:
        # a second set of as many corrects its level
        tests["mmdagg"] = lambda x, y, seed: bool(
            agg.mmdagg(x.numpy(), y.numpy(), LEVEL, B1=permutations, B2=permutations, seed=seed)
        )
    return tests


class Power(NamedTuple):
    """Of one test on one kind of data."""

    data: str
    test: str
    rejections: float  # the share of pairs
    standard_error: float
    seconds: float  # median, of the processor


def measure(tests: dict[str, Test], pairs: int) -> list[Power]:
    """Run every test on the same pairs of each kind."""
    results = []
    for number, (data, draw) in enumerate(DATA.items()):
        found: dict[str, list[bool]] = {name: [] for name in tests}
        seconds: dict[str, list[float]] = {name: [] for name in tests}
        for pair in range(pairs):
            x, y = draw(Generator().manual_seed(1000 * number + pair))
            for name, test in tests.items():
                if pair == 0 and name in COMPILED:
                    test(x, y, 0)
                start = time.process_time()
                found[name].append(test(x, y, pair))
                seconds[name].append(time.process_time() - start)
        for name in tests:
            share = statistics.fmean(found[name])
            error = (share * (1 - share) / pairs) ** 0.5
            results.append(Power(data, name, share, error, statistics.median(seconds[name])))
    return results


def format_table(results: list[Power]) -> str:
    """A Markdown table: a row per test, a column per kind of data, and seconds."""
    lines = [f"| test | {' | '.join(DATA)} | seconds |", "|---" * (len(DATA) + 2) + "|"]
    for name in dict.fromkeys(result.test for result in results):
        own = [result for result in results if result.test == name]
        shares = " | ".join(f"{one.rejections:.2f}" for one in own)
        lines.append(f"| {name} | {shares} | {own[0].seconds:.3f} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--pairs", type=int, default=100, help="of samples, of each kind")
    parser.add_argument("--permutations", type=int, default=199)
    arguments = parser.parse_args(given)
    for name in ("pairs", "permutations"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    tests = list_own_tests(arguments.permutations) | list_references(arguments.permutations)
    results = measure(tests, arguments.pairs)
    print(format_table(results))
    content = {
        "environment": describe_environment(),
        "level": LEVEL,
        "pairs": arguments.pairs,
        "permutations": arguments.permutations,
        "results": [result._asdict() for result in results],
    }
    write_json(arguments.out, content)


if __name__ == "__main__":
    main()
