"""Data for which rounding, cancellation or a division by zero matters."""

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.published import stacked_loss
from m3d_fast.kernels import Gaussian, Linear, Polynomial, mmd2, mmd2_and_grad


def far_away(generator: torch.Generator, mean: float) -> tuple[Tensor, Tensor]:
    """Draw rows of spread 1 about ``mean``; the exact answer is that of the rounded rows."""
    x = torch.randn(128, 512, generator=generator) + mean
    y = torch.randn(40, 512, generator=generator) + mean + 0.05
    return x, y


@pytest.mark.parametrize("mean", [0.0, 60.0, 1000.0, 1e5])
def test_accuracy_does_not_depend_on_the_distance_from_the_origin(mean, generator, truth, device):
    x, y = far_away(generator, mean)
    exact = truth.exact(x, y)
    value, (grad_x, grad_y) = mmd2_and_grad(x.to(device), y.to(device), wrt="both")
    truth.assert_value(value, exact.value)
    # weights have the error of a sum of 512 terms, 2^-24 sqrt(512) = 1.3e-6, less what their own
    # sum averages out: 5e-7 is seen
    truth.assert_gradient(grad_x, exact.grad_x, within=3e-6)
    truth.assert_gradient(grad_y, exact.grad_y, within=3e-6)


def test_published_formula_is_off_far_from_the_origin(generator, truth):
    x, y = far_away(generator, 1000.0)
    exact = truth.exact(x, y)
    y.requires_grad_()
    loss = stacked_loss(x, y)
    loss.backward()
    # worse than 1 %, where the test above bounds our error by 3e-6
    assert truth.relative_error(y.grad, exact.grad_y) > 1e-2
    assert (loss.double() - exact.value).abs() > 20 * 5e-6


def test_published_formula_agrees_near_the_origin(generator, truth):
    """So the difference above is rounding, not another definition."""
    x, y = far_away(generator, 0.0)
    exact = truth.exact(x, y)
    y.requires_grad_()
    stacked_loss(x, y).backward()
    assert truth.relative_error(y.grad, exact.grad_y) < 1e-5


@pytest.mark.parametrize("distance", [1e-1, 1e-3])
@pytest.mark.parametrize("mean", [0.0, 17.0])
def test_near_duplicates(distance, mean, generator, truth):
    x = torch.randn(64, 256, generator=generator).relu() + mean
    y = x[:24] + distance * torch.randn(24, 256, generator=generator)
    exact = truth.exact(x, y)
    value, gradient = mmd2_and_grad(x, y)
    truth.assert_value(value, exact.value)
    truth.assert_gradient(gradient, exact.grad_y)


def test_wide_bandwidth_keeps_the_digits_that_one_minus_small_would_cancel(generator, truth):
    """Unit vectors as in CMMD: a value of 1e-5 made of numbers between 0.9999 and 1."""
    x = torch.nn.functional.normalize(torch.randn(40, 96, generator=generator), dim=-1)
    y = torch.nn.functional.normalize(torch.randn(30, 96, generator=generator) + 0.3, dim=-1)
    kernel = Gaussian(sigma=100.0, scales=(1.0,))
    exact = truth.exact(x, y, kernel)
    truth.assert_value(mmd2(x, y, kernel), exact.value, within=1e-6 * exact.value.item())


def test_a_row_is_at_distance_zero_from_itself(generator):
    """Under so narrow a kernel all other terms vanish, and k(0) on the diagonals remains."""
    x, y = (torch.randn(n, 512, generator=generator, requires_grad=True) for n in (4, 3))
    kernel = Gaussian(bandwidth=1e-3)
    value = mmd2(x, y, kernel)
    value.backward()
    torch.testing.assert_close(value.item(), 5 / 4 + 5 / 3, rtol=1e-6, atol=0)
    assert not x.grad.any()
    assert not y.grad.any()
    assert mmd2(x, y, kernel, estimator="unbiased").item() == 0


def test_narrow_bandwidth_keeps_small_kernel_values(generator, truth):
    """exp(-15) seen as 1 + expm1(-15) would have two digits."""
    x = torch.randn(20, 8, generator=generator)
    y = torch.randn(10, 8, generator=generator) + 6
    kernel = Gaussian(bandwidth=16.0, scales=(1.0,))
    _, gradient = mmd2_and_grad(x[:1], y[:1], kernel)
    # exp passes the error of its exponent on: 15 to 20 with an error of a unit, 2^-23, times four
    truth.assert_gradient(gradient, truth.exact(x[:1], y[:1], kernel).grad_y, within=1e-5)


@pytest.mark.parametrize("kernel", [Gaussian(), Gaussian(sigma=0.1), Linear()], ids=repr)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("point", [0.0, 0.1, 1e8])
def test_all_points_equal_give_zero_value_and_gradient(kernel, estimator, point, device):
    x, y = torch.full((2, 7, 5), point, device=device), torch.full((2, 3, 5), point, device=device)
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, kernel, wrt="both", estimator=estimator)
    assert value.tolist() == [0.0, 0.0]
    assert not grad_x.any()
    assert not grad_y.any()
    y.requires_grad_()
    mmd2(x, y, kernel, estimator=estimator).sum().backward()
    assert not y.grad.any()


def test_all_points_equal_polynomial(generator):
    row = torch.randn(5, generator=generator)
    value, (grad_x, grad_y) = mmd2_and_grad(
        row.expand(7, 5), row.expand(3, 5), Polynomial(), wrt="both"
    )
    scale = (row @ row / 5 + 1).item() ** 3
    assert abs(value.item()) <= 1e-6 * scale
    assert max(grad_x.abs().max().item(), grad_y.abs().max().item()) <= 1e-6 * scale


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize(
    "kernel", [Gaussian(), Gaussian(sigma=1.0), Polynomial(), Linear()], ids=repr
)
def test_nan_and_infinity_reach_the_result_and_stay_in_their_batch_element(
    bad, side, kernel, generator, device
):
    x = torch.randn(2, 6, 4, generator=generator).to(device)
    y = torch.randn(2, 5, 4, generator=generator).to(device)
    expected, (clean_x, clean_y) = mmd2_and_grad(x, y, kernel, wrt="both")
    (x if side == "x" else y)[0, 2, 1] = bad
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, kernel, wrt="both")
    assert not value[0].isfinite()
    assert not grad_x[0].isfinite().all()
    assert not grad_y[0].isfinite().all()
    torch.testing.assert_close(value[1], expected[1], rtol=0, atol=0)
    torch.testing.assert_close(grad_x[1], clean_x[1], rtol=0, atol=0)
    torch.testing.assert_close(grad_y[1], clean_y[1], rtol=0, atol=0)


def test_infinity_in_a_gaussian_is_nan(generator):
    x, y = torch.randn(6, 4, generator=generator), torch.randn(5, 4, generator=generator)
    x[0, 0] = torch.inf
    assert mmd2(x, y).isnan()
