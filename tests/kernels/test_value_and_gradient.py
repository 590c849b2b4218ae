import itertools

import pytest
import torch

from m3d_fast.kernels import Gaussian, Kernel, Linear, Polynomial, mmd2, mmd2_and_grad

# classes, real rows, synthetic rows, features: ImageNet-100 at 10 images per class, low-resolution
# sets at 1 per class (features cut to 512), and shapes where a size is 1 or odd
SHAPES = [
    (2, 64, 90, 512),
    (3, 128, 4, 512),
    (2, 1, 5, 7),
    (2, 5, 1, 7),
    (3, 17, 9, 1),
    (1, 1, 1, 3),
]
KERNELS = [
    Gaussian(),
    Gaussian(scales=(1.0,)),
    Gaussian(bandwidth=40.0),
    Gaussian(sigma=5.0, scales=(0.5, 3.0)),
    Gaussian(gamma=0.02),
    Polynomial(),
    Polynomial(2, gamma=0.1, coef0=0.5),
    Polynomial(1, coef0=0.0),
    Linear(),
]


SMALL, THREE_CLASSES = (2, 24, 10, 33), (3, 24, 10, 33)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_those_of_the_definition(shape, two_samples, truth, device):
    x, y = two_samples(*shape)
    exact = truth.exact(x, y)
    value, (grad_x, grad_y) = mmd2_and_grad(x.to(device), y.to(device), wrt="both")
    # in one dimension the terms can nearly cancel: one class here has a gradient 36 times smaller
    # than the sum of its terms, each with an error of about a unit, 2^-23: 36 units, times four
    within = 2e-5 if shape[-1] == 1 else 2e-6
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_x, exact.grad_x, within=within)
    truth.assert_gradient(grad_y, exact.grad_y, within=within)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_every_kernel_and_estimator(kernel, estimator, two_samples, truth, device):
    x, y = two_samples(*SMALL)
    exact = truth.exact(x, y, kernel, estimator)
    value, (grad_x, grad_y) = mmd2_and_grad(
        x.to(device), y.to(device), kernel, wrt="both", estimator=estimator
    )
    size = truth.size_of(kernel, exact.value)
    truth.assert_value(value, exact.value, within=5e-6 * size)
    truth.assert_gradient(grad_x, exact.grad_x)
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize(
    "kernel", [Gaussian(), Gaussian(sigma=3.0), Polynomial(), Linear()], ids=repr
)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_float64_is_exact(kernel, estimator, two_samples, truth, device):
    x, y = (side.double() for side in two_samples(*SMALL))
    exact = truth.exact(x, y, kernel, estimator)
    value, (grad_x, grad_y) = mmd2_and_grad(
        x.to(device), y.to(device), kernel, wrt="both", estimator=estimator
    )
    assert value.dtype == grad_x.dtype == torch.float64
    truth.assert_value(value, exact.value, within=1e-13 * max(1, exact.value.max().item()))
    truth.assert_gradient(grad_x, exact.grad_x, within=1e-13)
    truth.assert_gradient(grad_y, exact.grad_y, within=1e-13)


@pytest.mark.parametrize("needed", ["x", "y", "both"])
def test_autograd_gives_the_gradient_of_a_weighted_sum(needed, two_samples, truth, device):
    x, y = two_samples(*SMALL)
    weights = torch.tensor([0.5, -3.0], dtype=torch.float64)
    exact = truth.exact(x, y)
    x, y = x.to(device), y.to(device)
    x.requires_grad_(needed != "y")
    y.requires_grad_(needed != "x")
    loss = (mmd2(x, y) * weights.to(device, torch.float32)).sum()
    loss.backward()
    assert (x.grad is None) == (needed == "y")
    assert (y.grad is None) == (needed == "x")
    for gradient, side in ((x.grad, exact.grad_x), (y.grad, exact.grad_y)):
        if gradient is not None:
            truth.assert_gradient(gradient, side * weights[:, None, None])


@pytest.mark.parametrize("wrt", ["x", "y", "both"])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial(), Linear()], ids=repr)
def test_leaving_the_value_out_changes_no_gradient(wrt, kernel, two_samples):
    x, y = two_samples(*SMALL)
    _, expected = mmd2_and_grad(x, y, kernel, wrt=wrt)
    value, gradient = mmd2_and_grad(x, y, kernel, wrt=wrt, value=False)
    assert value is None
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)], ids=str)
def test_batch_dimensions_are_independent(batch, generator):
    x = torch.randn((*batch, 12, 6), generator=generator).relu()
    y = (torch.randn((*batch, 7, 6), generator=generator) + 0.5).relu()
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, wrt="both")
    assert (value.shape, grad_x.shape, grad_y.shape) == (batch, x.shape, y.shape)
    for at in itertools.product(*map(range, batch)):
        alone, (alone_x, alone_y) = mmd2_and_grad(x[at], y[at], wrt="both")
        torch.testing.assert_close(value[at], alone, rtol=0, atol=1e-6)
        # sums of 7 or 12 terms of about 0.3, in another order: a unit of each, times four
        torch.testing.assert_close(grad_x[at], alone_x, rtol=0, atol=2e-7)
        torch.testing.assert_close(grad_y[at], alone_y, rtol=0, atol=2e-7)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(
    "kernel", [Gaussian(), Gaussian(gamma=0.1), Polynomial(), Linear()], ids=repr
)
def test_ragged_is_sliced_whatever_the_ignored_rows_hold(
    kernel, estimator, two_samples, truth, device
):
    x, y = two_samples(*THREE_CLASSES)
    x_lengths, y_lengths = torch.tensor([24, 3, 11]), torch.tensor([2, 10, 7], dtype=torch.int32)
    exact = truth.exact(x, y, kernel, estimator, x_lengths, y_lengths)
    for i in range(3):
        x[i, x_lengths[i] :] = torch.nan
        y[i, y_lengths[i] :] = torch.inf
    value, (grad_x, grad_y) = mmd2_and_grad(
        x.to(device),
        y.to(device),
        kernel,
        wrt="both",
        estimator=estimator,
        x_lengths=x_lengths.to(device),
        y_lengths=y_lengths.to(device),
    )
    size = truth.size_of(kernel, exact.value)
    truth.assert_value(value, exact.value, within=5e-6 * size)
    truth.assert_gradient(grad_x, exact.grad_x)
    truth.assert_gradient(grad_y, exact.grad_y)


def test_bandwidth_sigma_and_gamma_are_equivalent(two_samples):
    x, y = two_samples(*SMALL)
    same = [
        Gaussian(bandwidth=32.0),
        Gaussian(sigma=4.0),
        Gaussian(gamma=1 / 32),
        Gaussian(bandwidth=16.0, scales=(0.5, 1, 2, 4, 8)),
        Gaussian(bandwidth=torch.tensor(32.0)),
        Gaussian(sigma=torch.tensor([4.0, 4.0])),
        Gaussian(gamma=torch.tensor([1 / 32, 1 / 32], dtype=torch.float64)),
    ]
    values = [mmd2(x, y, kernel) for kernel in same]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=0, atol=2e-7)


def test_bandwidth_per_batch_element(two_samples, truth, device):
    x, y = two_samples(*SMALL)
    bandwidth = torch.tensor([20.0, 70.0])
    exact = truth.exact(x, y, Gaussian(bandwidth=bandwidth))
    kernel = Gaussian(bandwidth=bandwidth.to(device))
    value, gradient = mmd2_and_grad(x.to(device), y.to(device), kernel)
    truth.assert_value(value, exact.value)
    truth.assert_gradient(gradient, exact.grad_y)


def test_given_mean_bandwidth_equals_the_mean_rule(two_samples):
    x, y = (side.double() for side in two_samples(1, 24, 10, 33))
    squared = torch.cdist(torch.cat([x, y], 1), torch.cat([x, y], 1)).square()
    n = squared.shape[-1]
    kernel = Gaussian(bandwidth=squared.sum((-2, -1)) / (n * (n - 1)))
    torch.testing.assert_close(mmd2(x, y), mmd2(x, y, kernel), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial(), Linear()], ids=repr)
def test_layout_of_the_inputs_does_not_matter(kernel: Kernel, two_samples):
    x, y = two_samples(*THREE_CLASSES)
    x = x[:1].expand_as(x)
    strided = torch.zeros(10, 33, 6)[..., ::2].permute(2, 0, 1)
    strided.copy_(y)
    assert not x.is_contiguous()
    assert not strided.is_contiguous()
    expected = mmd2_and_grad(x.contiguous(), y, kernel, wrt="both")
    value, (grad_x, grad_y) = mmd2_and_grad(x, strided, kernel, wrt="both")
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad_x, expected[1][0], rtol=0, atol=1e-7)
    torch.testing.assert_close(grad_y, expected[1][1], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)], ids=str
)
def test_half_precision_is_computed_in_float32(dtype, rounding, two_samples, truth, device):
    """Only the gradient is rounded, once, to the dtype of its sample: by at most half a unit."""
    x, y = (side.to(dtype) for side in two_samples(*SMALL))
    exact = truth.exact(x, y)
    x, y = x.to(device), y.to(device)
    value, gradient = mmd2_and_grad(x, y)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    truth.assert_value(value, exact.value)
    truth.assert_gradient(gradient, exact.grad_y, within=rounding)
    y.requires_grad_()
    mmd2(x, y).sum().backward()
    assert y.grad.dtype == dtype
    truth.assert_gradient(y.grad, exact.grad_y, within=rounding)


def test_loss_scaling_saves_float16_gradients(truth, two_samples):
    """They are scaled before they are rounded: most of these are below what float16 can hold."""
    x, y = ((100 * side).half() for side in two_samples(2, 64, 64, 256))
    exact = truth.exact(x, y)
    assert exact.grad_y.abs().median() < torch.finfo(torch.float16).smallest_normal / 100
    y.requires_grad_()
    (mmd2(x, y).sum() * 2**16).backward()
    truth.assert_gradient(y.grad, exact.grad_y * 2**16, within=5e-4)


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_torch_matmul_setting_is_neither_followed_down_nor_changed(setting, two_samples, truth):
    x, y = two_samples(2, 64, 40, 512)
    exact = truth.exact(x, y)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        _, gradient = mmd2_and_grad(x, y)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
    truth.assert_gradient(gradient, exact.grad_y)
