"""Tests with many kernels, with signs and with blocks: by their formulas, their level and power."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.power import DATA
from m3d_fast.kernels import (
    Energy,
    Features,
    Gaussian,
    Kernel,
    Laplacian,
    Polynomial,
    Product,
    aggregated_test,
    block_test,
    mmd2,
    optimise_bandwidth,
    permutation_test,
    power_criterion,
    spread_kernels,
    wild_bootstrap_test,
)
from tests.helpers.mmd_truth import stacked_gram

UNIT = Gaussian(sigma=1.0, scales=(1.0,))
CITY_BLOCK = Laplacian(2.0, "l1")
KERNELS: list[Kernel] = [UNIT, Laplacian(2.0), Polynomial(2), CITY_BLOCK]


@pytest.fixture
def samples(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(14, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(9, 3, generator=generator, dtype=torch.float64) + 0.5


def permuted_values(x: Tensor, y: Tensor, seed: int, permutations: int) -> Tensor:
    """Unbiased MMD^2 of the samples and of each permutation, (1 + permutations, kernels)."""
    z, n, generator = torch.cat([x, y]), len(x), torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(z), generator=generator) for _ in range(permutations)]
    return torch.stack(
        [
            torch.stack([mmd2(z[o[:n]], z[o[n:]], k, estimator="unbiased") for k in KERNELS])
            for o in (torch.arange(len(z)), *orders)
        ]
    )


def test_fuse_is_its_formula(samples):
    x, y = samples
    result = aggregated_test(
        x, y, KERNELS, permutations=30, generator=torch.Generator().manual_seed(1)
    )
    values = permuted_values(x, y, 1, 30)
    squares = []
    for kernel in KERNELS:
        k = stacked_gram(torch.cat([x, y]), kernel)
        squares.append((k - k.diag().diag()).square().sum() / (23 * 22))
    sharpness = (9 * 8) ** 1.5 / (23 * 22) ** 0.5
    statistics = (sharpness * values / torch.stack(squares).sqrt()).exp().mean(1).log() / sharpness
    torch.testing.assert_close(result.statistic, statistics[0])
    torch.testing.assert_close(result.null, statistics[1:])
    assert result.p_value == pytest.approx((statistics >= statistics[0] - 1e-12).double().mean())


def test_smallest_p_value_is_that_of_its_definition(samples):
    x, y = samples
    result = aggregated_test(
        x, y, KERNELS, method="min_p", permutations=30, generator=torch.Generator().manual_seed(1)
    )
    values = permuted_values(x, y, 1, 30)
    shares = (values[None] >= values[:, None] - 1e-12).double().mean(1)
    torch.testing.assert_close(result.kernel_p_values, shares[0])
    smallest = shares.amin(1)
    # equal ones are ordered by scores: the p-value lies between those with and without them
    assert (smallest < smallest[0]).double().mean() < result.p_value
    assert result.p_value <= (smallest <= smallest[0]).double().mean() + 1e-12


def test_signs_exchange_rows(samples):
    x, y = samples[0][:9], samples[1]
    kernel = Product(Gaussian(), Energy())
    result = wild_bootstrap_test(
        x, y, kernel, bootstraps=20, generator=torch.Generator().manual_seed(2)
    )
    k = stacked_gram(torch.cat([x, y]), kernel)
    # draws as the test does: 0 becomes a sign of -1
    generator = torch.Generator().manual_seed(2)
    signs = torch.empty(20, 9, dtype=torch.int8).random_(0, 2, generator=generator) * 2.0 - 1
    w = torch.cat([signs, -signs], 1).double() / 9
    torch.testing.assert_close(result.null, torch.einsum("bi,ij,bj->b", w, k, w))
    torch.testing.assert_close(result.statistic, mmd2(x, y, kernel))


def test_blocks_are_their_mean(generator):
    x, y = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    result = block_test(x, y, Energy(), block_rows=8)
    values = torch.stack(
        [mmd2(x[i : i + 8], y[i : i + 8], Energy(), estimator="unbiased") for i in range(0, 48, 8)]
    )
    torch.testing.assert_close(result.values, values)
    score = values.mean() / values.std() * 6**0.5
    assert result.p_value == pytest.approx(1 - torch.special.ndtr(score).item())


def test_permutations_of_any_kernel_are_those_of_the_definition(samples):
    x, y = samples
    kernel = Features(Energy(), (0, 2))
    result = permutation_test(
        x, y, kernel, permutations=5, generator=torch.Generator().manual_seed(1)
    )
    z, generator = torch.cat([x, y]), torch.Generator().manual_seed(1)
    orders = [torch.randperm(23, generator=generator) for _ in range(5)]
    expected = torch.stack([mmd2(z[o[:14]], z[o[14:]], kernel) for o in orders])
    torch.testing.assert_close(result.null, expected)
    torch.testing.assert_close(result.statistic, mmd2(x, y, kernel))


@pytest.mark.parametrize("name", ["fuse", "min_p", "wild", "block"])
def test_p_values_are_uniform_where_the_null_holds(name):
    """Kolmogorov-Smirnov on the values that a p-value can take, at the 1 % limit, of 500 tests."""
    generator = torch.Generator().manual_seed(0)
    rows = 320 if name == "block" else 10
    p = []
    for _ in range(500):
        x, y = torch.randn(2, rows, 2, generator=generator)
        if name == "wild":
            result = wild_bootstrap_test(x, y, KERNELS[0], bootstraps=19, generator=generator)
        elif name == "block":
            result = block_test(x, y, KERNELS[0], block_rows=8)
        else:
            result = aggregated_test(
                x, y, KERNELS[:2], method=name, permutations=19, generator=generator
            )
        p.append(result.p_value)
    values = torch.tensor(p, dtype=torch.float64)
    levels = torch.arange(1, 20, dtype=torch.float64) / 20
    shares = (values[:, None] <= levels + 1e-9).double().mean(0)
    assert (shares - levels).abs().max() < 1.63 / 500**0.5


def test_many_bandwidths_and_the_best_one_find_what_the_mean_one_misses():
    """At level 0.05, of 4 pairs of blobs, whose distances are mostly those between blobs."""
    generator = torch.Generator().manual_seed(0)
    found = {"mean": 0, "fuse": 0, "optimised": 0}
    options = {"permutations": 59, "generator": generator}
    for _ in range(4):
        x, y = DATA["blobs"](generator)
        kernel = optimise_bandwidth(*DATA["blobs"](generator), steps=20, learning_rate=0.1)
        found["mean"] += permutation_test(x, y, Gaussian(scales=(1.0,)), **options).p_value <= 0.05
        found["fuse"] += aggregated_test(x, y, **options).p_value <= 0.05
        found["optimised"] += permutation_test(x, y, kernel, **options).p_value <= 0.05
    assert found["mean"] <= 1
    assert found["fuse"] >= 3
    assert found["optimised"] >= 3


def test_digits_without_a_class_are_told_apart():
    digits, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    rows, labels = torch.tensor(digits, dtype=torch.float32)[order], torch.tensor(labels)[order]
    x, rest, kept = rows[:300], rows[300:], labels[300:] != 3
    assert aggregated_test(x, rest[kept][:300], permutations=99).p_value <= 0.05
    assert aggregated_test(x, rest[:300], permutations=99).p_value > 0.05


@pytest.mark.parametrize("kernel", [UNIT, CITY_BLOCK], ids=repr)
def test_power_criterion_and_its_gradient(kernel, samples):
    """Liu et al. 2020, eq. 3 to 5, and a finite difference in the bandwidth of each feature."""
    x, y = samples[0][:9], samples[1]
    widths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).requires_grad_()
    power = power_criterion(x, y, Features(kernel, bandwidth=widths))
    k = stacked_gram(torch.cat([x, y]) / widths.detach(), kernel)
    h = k[:9, :9] + k[9:, 9:] - k[:9, 9:] - k[9:, :9]
    variance = 4 / 9**3 * h.sum(1).square().sum() - 4 / 9**4 * h.sum() ** 2
    expected = (h.sum() - h.trace()) / 72 / (variance / 9 + 1e-8).sqrt()
    torch.testing.assert_close(power, expected)
    assert torch.autograd.gradcheck(
        lambda one: power_criterion(x, y, Features(kernel, bandwidth=one)), widths
    )


def test_best_bandwidth_per_feature_ignores_features_that_do_not_differ(generator):
    x, y = torch.randn(2, 200, 3, generator=generator)
    y[:, 0] += 1
    kernel = optimise_bandwidth(x, y, per_feature=True, steps=20, learning_rate=0.1)
    first, *others = kernel.bandwidth.tolist()
    assert first < min(others)


def test_spread_of_bandwidths_does_not_see_which_sample_a_row_is_of(samples):
    x, y = samples
    z = torch.cat([x, y])
    drawn = [
        spread_kernels(*pair, count=3, generator=torch.Generator().manual_seed(1))
        for pair in ((x, y), (z[:5], z[5:]))
    ]
    assert drawn[0] == drawn[1]
    distances = torch.pdist(z)
    widths = [kernel.sigma for kernel in drawn[0][:3]]
    assert widths[0] == pytest.approx(distances.quantile(0.05).item() / 2)
    assert widths[2] == pytest.approx(distances.quantile(0.95).item() * 2)
    assert widths[1] ** 2 == pytest.approx(widths[0] * widths[2])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: aggregated_test(x, x, method="max"), ValueError, "method: expected one of"),
        (lambda x: aggregated_test(x, x, [Energy]), TypeError, "kernel: expected Gaussian"),
        (lambda x: aggregated_test(x, x, []), ValueError, "kernels: expected at least one"),
        (lambda x: aggregated_test(x[:1], x), ValueError, "x: the unbiased estimator needs"),
        (lambda x: aggregated_test(x, x, permutations=0), ValueError, "permutations: expected"),
        (lambda x: spread_kernels(x * 0, x * 0), ValueError, "x, y: expected rows that differ"),
        (lambda x: wild_bootstrap_test(x, x[:3]), ValueError, "as many rows in each, got 6 and 3"),
        (lambda x: block_test(x, x, block_rows=4), ValueError, "block_rows: expected at most 3"),
        (lambda x: block_test(x, x, block_rows=1), ValueError, "block_rows: expected at least 2"),
        (lambda x: power_criterion(x, x[:3]), ValueError, "as many rows in each, at least 2"),
        (lambda x: optimise_bandwidth(x * 0, x * 0), ValueError, "expected rows that differ"),
    ],
)
def test_invalid_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randn(6, 3))
