"""Weights per row, and every kernel function: value and gradients are those of the definition."""

import logging

import pytest
import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from m3d_fast.kernels import (
    Energy,
    Features,
    Gaussian,
    Kernel,
    Laplacian,
    Linear,
    MMDLoss,
    Polynomial,
    Product,
    RationalQuadratic,
    Sum,
    gram,
    mmd2,
    mmd2_and_grad,
)
from m3d_fast.kernels.general import op, tiled, views
from tests.helpers.mmd_truth import stacked_gram, weighted_by_definition

WIDTHS = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.7, 1.0], dtype=torch.float64)
CITY_BLOCK = Laplacian(4.0, "l1")
KERNELS: list[Kernel] = [
    Gaussian(),
    Gaussian(sigma=2.0),
    Polynomial(),
    Linear(),
    Laplacian(2.0),
    CITY_BLOCK,
    RationalQuadratic(),
    Energy(),
    Energy(1.5),
    Sum(Gaussian(), Energy()),
    Product(Gaussian(), Laplacian(3.0), Polynomial(2)),
    Features(Gaussian(scales=(1.0,)), bandwidth=WIDTHS),
    Features(Laplacian(), (1, 4)),
    Sum(Product(Gaussian(), Features(Laplacian(norm="l1"), (1, 4), WIDTHS[1:4])), Linear()),
    Product(
        Features(Gaussian(), (0, 3)),
        Features(RationalQuadratic(), (3, 6), WIDTHS[3:]),
        Sum(Linear(), Energy()),
    ),
]


def name(kernel: Kernel) -> str:
    return type(kernel).__name__


@pytest.fixture
def samples(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples of two batch elements and their weights, float64; one row of each weighs nothing."""
    x = torch.randn(2, 30, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 20, 6, generator=generator, dtype=torch.float64) + 0.3
    u, v = (torch.rand(side.shape[:-1], generator=generator) + 0.1 for side in (x, y))
    u[:, 0] = v[:, 3] = 0
    return x, y, u, v


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_value_and_gradients_are_those_of_the_definition(kernel, estimator, samples):
    x, y, u, v = samples
    for weights in ((u, v), (None, None)):
        value, gradients = mmd2_and_grad(
            x,
            y,
            kernel,
            wrt="both",
            estimator=estimator,
            x_weights=weights[0],
            y_weights=weights[1],
        )
        for i in range(2):
            a, b = (
                torch.ones(n) if w is None else w[i] for n, w in zip((30, 20), weights, strict=True)
            )
            exact = weighted_by_definition(x[i], y[i], kernel, estimator == "unbiased", a, b)
            torch.testing.assert_close(value[i], exact.value, rtol=1e-12, atol=1e-13)
            for mine, true in zip(gradients, exact[1:], strict=True):
                torch.testing.assert_close(mine[i], true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_float32_keeps_its_digits(kernel, samples):
    x, y, u, v = samples
    if kernel.__class__ is Features and kernel.bandwidth is not None:
        kernel = Features(kernel.kernel, bandwidth=WIDTHS.float())
    value, gradients = mmd2_and_grad(
        x[0].float(), y[0].float(), kernel, wrt="both", x_weights=u[0], y_weights=v[0]
    )
    exact = weighted_by_definition(x[0].float(), y[0].float(), kernel, False, u[0], v[0])
    assert value.dtype == gradients[0].dtype == torch.float32
    # products of polynomials sum terms of about a hundred
    assert abs(value - exact.value) < 2e-6 * max(1, stacked_gram(x[0], kernel).abs().max())
    for mine, true in zip(gradients, exact[1:], strict=True):
        assert (mine - true).norm() < 2e-6 * true.norm()


@pytest.mark.parametrize("kernel", KERNELS, ids=name)
def test_gram_is_the_matrix_of_the_kernel(kernel, samples):
    x, y, *_ = samples
    expected = stacked_gram(torch.cat([x[0], y[0]]), kernel)[:30, 30:]
    torch.testing.assert_close(gram(x[0], y[0], kernel), expected, rtol=1e-10, atol=1e-12)


def test_tiles_and_near_pairs_are_those_of_one_tile(monkeypatch, generator):
    """Several blocks of rows, distances by products, and rows that nearly coincide."""
    x, y = torch.randn(2, 300, 20, generator=generator)
    # directions of close rows are differences of products: their error is 2^-24 |a| / distance
    y[:40] = x[:40] + 1e-3
    y[40] = x[40]
    exact = weighted_by_definition(x, y, Energy(), False, torch.ones(300), torch.ones(300))
    assert len(views._split_rows(x)) > 1
    for few in (views.FEW, 0.0):
        monkeypatch.setattr(views, "FEW", few)
        value, (grad_x, grad_y) = mmd2_and_grad(x, y, Energy(), wrt="both")
        assert abs(value - exact.value) < 2e-6
        assert (grad_x - exact.grad_x).norm() < 3e-5 * exact.grad_x.norm()
        assert (grad_y - exact.grad_y).norm() < 3e-5 * exact.grad_y.norm()


@pytest.mark.parametrize("kernel", [Energy(), Laplacian(), Energy(1.5), CITY_BLOCK], ids=repr)
@pytest.mark.parametrize("columns", [3, 40])
def test_coincident_points_have_a_finite_gradient_of_zero(kernel, columns, generator):
    x = torch.randn(40, columns, generator=generator)
    value, (grad_x, grad_y) = mmd2_and_grad(x, x.clone(), kernel, wrt="both")
    assert abs(value) < 1e-6
    assert grad_x.abs().max() < 1e-6
    assert grad_y.abs().max() < 1e-6
    same = torch.full((5, columns), 0.1)
    assert mmd2_and_grad(same, same, kernel)[1].eq(0).all()


def test_lengths_are_weights_of_one_and_zero(samples):
    x, y, *_ = (one.float() for one in samples)
    lengths = torch.tensor([30, 7])
    x[1, 7:] = torch.nan
    weights = (torch.arange(30) < lengths[:, None]).float()
    for kernel in (Gaussian(), Polynomial(2)):
        value, gradient = mmd2_and_grad(x, y, kernel, wrt="x", x_lengths=lengths)
        weighted, weighted_gradient = mmd2_and_grad(x, y, kernel, wrt="x", x_weights=weights)
        torch.testing.assert_close(weighted, value, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(weighted_gradient, gradient, rtol=1e-5, atol=1e-6)
    assert weighted_gradient[1, 7:].eq(0).all()
    longer = mmd2(x, y, Energy(), x_weights=weights * 3, x_lengths=lengths)
    torch.testing.assert_close(longer, mmd2(x, y, Energy(), x_lengths=lengths))


def test_signs_of_differences_are_summed_in_parts(monkeypatch, generator):
    """Several blocks of rows, of features that often agree."""
    x, y = torch.randn(2, 20, 300, generator=generator).round(decimals=1).mT
    exact = weighted_by_definition(x, y, CITY_BLOCK, False, torch.ones(300), torch.ones(300))
    for numbers in (tiled.SIGNED_NUMBERS, 20 * 128 * 50):
        monkeypatch.setattr(tiled, "SIGNED_NUMBERS", numbers)
        value, (grad_x, grad_y) = mmd2_and_grad(x, y, CITY_BLOCK, wrt="both")
        assert abs(value - exact.value) < 1e-6
        assert (grad_x - exact.grad_x).norm() < 2e-6 * exact.grad_x.norm()
        assert (grad_y - exact.grad_y).norm() < 2e-6 * exact.grad_y.norm()


def test_a_weight_of_two_is_a_row_that_occurs_twice(samples):
    x, y, *_ = samples
    twice = torch.cat([x[0], x[0, :4]])
    weights = torch.ones(30)
    weights[:4] = 2
    for kernel in (Gaussian(sigma=1.0), Energy()):
        torch.testing.assert_close(
            mmd2(x[0], y[0], kernel, x_weights=weights), mmd2(twice, y[0], kernel)
        )


def test_bandwidth_per_feature_has_a_gradient(samples):
    x, y, *_ = samples
    widths = WIDTHS.clone().requires_grad_()

    def loss(widths: Tensor) -> Tensor:
        return mmd2(x, y, Features(Gaussian(sigma=1.0), bandwidth=widths)).sum()

    assert torch.autograd.gradcheck(loss, widths)


def test_it_is_an_op_of_torch(samples):
    x, y, u, v = samples
    x, y = x.requires_grad_(), y.requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for kernel in ("energy", "laplacian_l1"):
        arguments = (x, y, u[:, None], v[:, None], [kernel], [1], [0], [1.0], [0, 6], True)
        torch.library.opcheck(op.weighted_mmd2, (*arguments, True, True, True), test_utils=checks)
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    (mmd2(x, y, Energy(), x_weights=u) * weights).sum().backward()
    _, gradient = mmd2_and_grad(x, y, Energy(), wrt="x", x_weights=u)
    torch.testing.assert_close(x.grad, gradient * weights[:, None, None])
    (gradient,) = torch.autograd.grad(mmd2(x, y, Energy()).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_torch_func_sees_the_same(samples):
    x, y, u, _ = samples
    expected = mmd2_and_grad(x, y, Energy(), wrt="x", x_weights=u)
    value = torch.func.vmap(lambda a, b, w: mmd2(a, b, Energy(), x_weights=w))(x, y, u)
    torch.testing.assert_close(value, expected[0])
    gradient = torch.func.grad(lambda a: mmd2(a, y[0], Energy(), x_weights=u[0]))(x[0])
    torch.testing.assert_close(gradient, expected[1][0])


def test_compiles_without_a_break(samples):
    x, y, u, v = samples
    kernel = Sum(Gaussian(), Features(Energy(), (0, 3)), CITY_BLOCK)
    loss = MMDLoss(kernel)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(x, y, x_weights=u, y_weights=v), loss(x, y, x_weights=u, y_weights=v)
    )


@pytest.mark.parametrize("kernel", [Energy(), CITY_BLOCK], ids=name)
def test_memory_is_not_that_of_the_kernel_matrix(kernel, generator):
    """The kernel matrix of 4,000 rows would take 61 MB."""
    x, y = torch.randn(2, 2000, 20, generator=generator)
    assert peak_bytes(lambda: mmd2(x, y, kernel)) < 12 * 2**20


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1.0] * 4, TypeError, "x_weights: expected a floating-point tensor, got list"),
        (torch.ones(2, 4).long(), TypeError, "x_weights: expected a flo.*, got torch.int64"),
        (
            torch.ones(4),
            ValueError,
            r"x_weights: .* per row, \(2, 4\), got \(4,\)",
        ),
        (-torch.ones(2, 4), ValueError, "x_weights: expected finite .* at least 0, got -1.0"),
        (torch.full((2, 4), torch.nan), ValueError, "x_weights: expected finite .*, got nan"),
        (torch.zeros(2, 4), ValueError, "x_weights: expected a positive number .*, got zeros"),
        (torch.ones(2, 4).requires_grad_(), ValueError, "x_weights: .* without requires_grad"),
        (torch.ones(2, 4, device="meta"), ValueError, "x_weights: expected device cpu, got meta"),
        (torch.eye(4)[:2], ValueError, "x_weights: the unbiased estimator needs 2 rows"),
    ],
    ids=str,
)
def test_invalid_weights_are_refused(weights, error, words):
    x, y = torch.ones(2, 4, 3), torch.zeros(2, 5, 3)
    with pytest.raises(error, match=words):
        mmd2(x, y, x_weights=weights, estimator="unbiased")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Laplacian(0.0), ValueError, "bandwidth: expected a positive"),
        (lambda: Laplacian(torch.ones(())), TypeError, "bandwidth: expected a float, got a tensor"),
        (lambda: Laplacian(norm="L1"), ValueError, "norm: expected 'l1' or 'l2', got 'L1'"),
        (lambda: RationalQuadratic(alphas=()), ValueError, "alphas: expected at least one"),
        (lambda: RationalQuadratic(alphas=(1.0, -1.0)), ValueError, "alphas: expected a positive"),
        (lambda: Energy(0.5), ValueError, "exponent: .* no bound near coincident points.*got 0.5"),
        (lambda: Energy(2.0), ValueError, "exponent: .* less than 2, got 2.0"),
        (lambda: Sum(), ValueError, "kernels: expected at least one"),
        (lambda: Product(Gaussian), TypeError, "kernel: expected Gaussian, .*, got <class"),
        (lambda: Features(Energy(), (3, 3)), ValueError, "columns: expected 0 <= start < stop"),
        (
            lambda: Features(Energy(), bandwidth=2.0),
            TypeError,
            "bandwidth: expected a floating",
        ),
        (
            lambda: Features(Energy(), bandwidth=torch.ones(1, 3)),
            ValueError,
            "bandwidth: .* shape",
        ),
    ],
)
def test_invalid_kernels_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (Features(Energy(), (0, 4)), "columns: expected at most the 3 features .*, got 0 to 4"),
        (
            Features(Energy(), bandwidth=torch.ones(2)),
            r"bandwidth: .* feature, \(3,\), got \(2,",
        ),
        (Features(Energy(), bandwidth=torch.zeros(3)), "bandwidth: expected positive finite"),
        (Features(Energy(), bandwidth=torch.ones(3, device="meta")), "bandwidth: expected device"),
        (
            Sum(Gaussian(bandwidth=torch.tensor(-1.0)), Energy()),
            "bandwidth: expected positive",
        ),
    ],
)
def test_kernels_that_do_not_fit_the_samples_are_refused(kernel, words):
    with pytest.raises(ValueError, match=words):
        mmd2(torch.ones(4, 3), torch.zeros(5, 3), kernel)


def test_a_gpu_says_once_what_runs(caplog):
    op._report_path.cache_clear()
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for names in ("energy", "energy", "laplacian"):
            op._report_path(names)
    assert [record.message for record in caplog.records] == [
        "mmd2 with weights or of energy runs as plain torch",
        "mmd2 with weights or of laplacian runs as plain torch",
    ]
