"""Errors of invalid input name the argument, what was expected and what was given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from m3d_fast.kernels import Gaussian, Linear, MMDLoss, Polynomial, mmd2, mmd2_and_grad, reference

X, Y = torch.ones(2, 4, 3), torch.zeros(2, 5, 3)
LENGTHS = torch.tensor([4, 2])

SAMPLES = [
    ((X.numpy(), Y), TypeError, "x: expected a tensor, got ndarray"),
    ((X, Y.long()), TypeError, "y: expected a floating dtype, got torch.int64"),
    ((X.to(torch.complex64), Y), TypeError, "x: expected a floating dtype, got torch.complex64"),
    ((X[0, 0], Y), ValueError, r"x: expected at least .*, got \(3,\)"),
    ((X[:, :0], Y), ValueError, r"x: expected at least one row .*, got \(2, 0, 3\)"),
    ((X, Y[:, :0]), ValueError, r"y: expected at least one row .*, got \(2, 0, 3\)"),
    ((X[..., :0], Y[..., :0]), ValueError, r"x: expected at least .* column.*, got \(2, 4, 0\)"),
    ((X, Y[..., :2]), ValueError, r"x, y: .*, got \(2, 4, 3\) and \(2, 5, 2\)"),
    ((X, Y[:1]), ValueError, r"x, y: .*, got \(2, 4, 3\) and \(1, 5, 3\)"),
    ((X, Y[0]), ValueError, r"x, y: .*, got \(2, 4, 3\) and \(5, 3\)"),
    ((X, Y.double()), TypeError, "x, y: expected one dtype, got torch.float32 and torch.float64"),
    ((X, Y.half()), TypeError, "x, y: expected one dtype, got torch.float32 and torch.float16"),
    ((X, Y.to("meta")), ValueError, "x, y: expected one device, got cpu and meta"),
    ((X, Y, Gaussian), TypeError, "kernel: expected Gaussian, Polynomial, Linear, .*, got <class"),
    ((X, Y, "rbf"), TypeError, "kernel: expected Gaussian, Polynomial, Linear, .*, got 'rbf'"),
]

OPTIONS = [
    (
        {"estimator": "umvue"},
        ValueError,
        "estimator: expected one of 'biased', 'unbiased', got 'umv",
    ),
    ({"precision": "low"}, ValueError, "precision: expected one of 'highest', .*, got 'low'"),
    ({"x_lengths": [4, 2]}, TypeError, "x_lengths: expected an int32 or int64 tensor, got list"),
    (
        {"x_lengths": LENGTHS.float()},
        TypeError,
        "x_lengths: expected an int32 .*, got torch.float32",
    ),
    ({"y_lengths": LENGTHS.bool()}, TypeError, "y_lengths: expected an int32 .*, got torch.bool"),
    ({"x_lengths": LENGTHS[:1]}, ValueError, r"x_lengths: expected shape \(2,\), got \(1,\)"),
    ({"x_lengths": LENGTHS.to("meta")}, ValueError, "x_lengths: expected device cpu, got meta"),
    ({"x_lengths": LENGTHS + 1}, ValueError, "x_lengths: expected 1 to 4 .*, got 3 to 5"),
    ({"y_lengths": LENGTHS - 2}, ValueError, "y_lengths: expected 1 to 5 .*, got 0 to 2"),
]

BANDWIDTHS = [
    (torch.tensor(0.0), "bandwidth: expected positive finite numbers .*, got 0.0"),
    (torch.tensor([1.0, torch.inf]), r"bandwidth: expected positive finite .*, got \[1.0, inf\]"),
    (torch.tensor(torch.nan), "bandwidth: expected positive finite numbers .*, got nan"),
    (torch.ones(3), r"bandwidth: expected shape \(2,\) or \(\), got \(3,\)"),
    (torch.ones(2, 1), r"bandwidth: expected shape \(2,\) or \(\), got \(2, 1\)"),
    (torch.ones(2, device="meta"), "bandwidth: expected device cpu, got meta"),
]

FAMILIES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Gaussian(bandwidth=0.0), ValueError, "bandwidth: expected a positive .*, got 0.0"),
    (lambda: Gaussian(bandwidth=-1), ValueError, "bandwidth: expected a positive .*, got -1"),
    (
        lambda: Gaussian(bandwidth=torch.inf),
        ValueError,
        "bandwidth: expected .* finite .*, got inf",
    ),
    (
        lambda: Gaussian(bandwidth=torch.nan),
        ValueError,
        "bandwidth: expected .* finite .*, got nan",
    ),
    (lambda: Gaussian(bandwidth=None), TypeError, "bandwidth: expected a float .*, got None"),
    (lambda: Gaussian(bandwidth=True), TypeError, "bandwidth: expected a float .*, got True"),
    (lambda: Gaussian(bandwidth="median"), ValueError, "expected 'mean' or a number, got 'median'"),
    (lambda: Gaussian(sigma=0.0), ValueError, "sigma: expected a positive .*, got 0.0"),
    (lambda: Gaussian(gamma=-2.0), ValueError, "gamma: expected a positive .*, got -2.0"),
    (lambda: Gaussian(gamma="1"), TypeError, "gamma: expected a float or a tensor, got '1'"),
    (lambda: Gaussian(bandwidth=1.0, sigma=1.0), TypeError, "got bandwidth and sigma"),
    (lambda: Gaussian(bandwidth=1.0, gamma=1.0), TypeError, "got bandwidth and gamma"),
    (lambda: Gaussian(sigma=1.0, gamma=1.0), TypeError, "expected one of .*, got sigma and gamma"),
    (lambda: Gaussian(scales=()), ValueError, "scales: expected at least one number, got none"),
    (lambda: Gaussian(scales=(1.0, 0.0)), ValueError, "scales: expected a positive .*, got 0.0"),
    (
        lambda: Gaussian(scales=(torch.tensor(1.0),)),
        TypeError,
        "scales: expected floats, got a ten",
    ),
    (
        lambda: Gaussian(bandwidth=torch.tensor(1)),
        TypeError,
        "expected a floating.*, got torch.int64",
    ),
    (
        lambda: Gaussian(sigma=torch.ones(2, requires_grad=True)),
        ValueError,
        "sigma: expected a tensor without requires_grad, got one with it",
    ),
    (lambda: Polynomial(0), ValueError, "degree: expected at least 1, got 0"),
    (lambda: Polynomial(2.0), TypeError, "degree: expected an int, got 2.0"),
    (lambda: Polynomial(gamma=0.0), ValueError, "gamma: expected a positive .*, got 0.0"),
    (lambda: Polynomial(coef0=-1.0), ValueError, "coef0: expected .*, got -1.0"),
    (lambda: Polynomial(coef0=torch.tensor(1.0)), TypeError, "expected floats, got a tensor"),
    (lambda: MMDLoss("rbf"), TypeError, "kernel: expected Gaussian, Polynomial, Linear, "),
    (lambda: MMDLoss(reduction="max"), ValueError, "reduction: expected one of .*, got 'max'"),
    (lambda: MMDLoss(estimator="V"), ValueError, "estimator: expected one of .*, got 'V'"),
    (lambda: MMDLoss(precision="tf32"), ValueError, "precision: expected one of .*, got 'tf32'"),
    (lambda: mmd2_and_grad(X, Y, wrt="z"), ValueError, "wrt: expected one of 'x', .*, got 'z'"),
]


@pytest.mark.parametrize("call", [mmd2, mmd2_and_grad])
@pytest.mark.parametrize(("arguments", "error", "message"), SAMPLES)
def test_samples(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(*arguments)


@pytest.mark.parametrize("call", [mmd2, mmd2_and_grad])
@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_options(call, options, error, message):
    with pytest.raises(error, match=message):
        call(X, Y, **options)


@pytest.mark.parametrize(("bandwidth", "message"), BANDWIDTHS)
def test_bandwidth_tensors(bandwidth, message):
    with pytest.raises(ValueError, match=message):
        mmd2(X, Y, Gaussian(bandwidth=bandwidth))


@pytest.mark.parametrize(
    "kernel", [Gaussian(sigma=torch.tensor(-1.0)), Gaussian(gamma=-torch.ones(2))]
)
def test_negative_tensors_are_refused_in_every_unit(kernel):
    with pytest.raises(ValueError, match="bandwidth: expected positive finite numbers"):
        mmd2(X, Y, kernel)


def test_bandwidth_that_requires_grad_after_the_kernel_is_made():
    bandwidth = torch.tensor(1.0)
    kernel = Gaussian(bandwidth=bandwidth)
    bandwidth.requires_grad_()
    with pytest.raises(ValueError, match="bandwidth: expected a tensor without requires_grad"):
        mmd2(X, Y, kernel)


@pytest.mark.parametrize(("make", "error", "message"), FAMILIES)
def test_kernels_and_modules(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial(), Linear()], ids=repr)
def test_unbiased_estimator_needs_two_rows(kernel):
    for x, y, side in ((X[:, :1], Y, "x"), (X, Y[:, :1], "y")):
        with pytest.raises(
            ValueError, match=f"{side}: the unbiased estimator needs at least 2 rows"
        ):
            mmd2(x, y, kernel, estimator="unbiased")
    with pytest.raises(ValueError, match=r"x_lengths: the unbiased estimator .* 2 rows, got 1"):
        mmd2(X, Y, kernel, estimator="unbiased", x_lengths=torch.tensor([4, 1]))


def test_values_that_a_gpu_does_not_check_give_nan():
    """There the values of tensors are not read: the formula itself must give NaN."""
    rule = reference.Rule("gaussian", [1.0], False)
    bad_width = reference.mmd2(X, Y, rule, bandwidth=torch.tensor([0.0, 1.0]), grad_y=True)
    bad_length = reference.mmd2(X, Y, rule, x_lengths=torch.tensor([5, 4]), grad_y=True)
    for result in (bad_width, bad_length):
        assert result.value.isnan().tolist() == [True, False]
        assert result.grad_y[0].isnan().any()
        assert result.grad_y[1].isfinite().all()
