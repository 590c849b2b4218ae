"""The tile and value families against the definition in float64."""

import pytest
import torch

from m3d_fast.kernels import Gaussian, Polynomial
from m3d_fast.kernels.triton import tile, value

# less than a tile; ragged in every size; several tiles of rows and of columns; single rows
SHAPES = [(1, 16, 4, 64), (3, 37, 11, 100), (2, 150, 70, 20), (2, 5, 1, 7), (1, 1, 1, 3)]
KERNELS = [
    Gaussian(),
    Gaussian(scales=(3.0, 1.0)),
    Gaussian(bandwidth=40.0),
    Gaussian(sigma=5.0, scales=(0.5, 3.0)),
    Polynomial(),
    Polynomial(2, gamma=0.1, coef0=0.5),
    Polynomial(1, coef0=0.0),
]


@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_compute_value_and_gradients(shape, kernel, two_samples, truth, triton_op):
    x, y = two_samples(*shape)
    exact = truth.exact(x, y, kernel)
    value, grad_x, grad_y = triton_op("tile", x, y, kernel)
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    truth.assert_gradient(grad_x, exact.grad_x)
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_alone(shape, kernel, two_samples, truth, triton_op):
    x, y = two_samples(*shape)
    exact = truth.exact(x, y, kernel)
    value, _, _ = triton_op("value", x, y, kernel, wrt="none")
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))


@pytest.mark.parametrize("family", ["tile", "value"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_every_kernel_and_estimator(kernel, estimator, family, two_samples, truth, triton_op):
    x, y = two_samples(d=40)
    exact = truth.exact(x, y, kernel, estimator)
    wrt = "both" if family == "tile" else "none"
    value, grad_x, grad_y = triton_op(family, x, y, kernel, estimator=estimator, wrt=wrt)
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    if family == "tile":
        truth.assert_gradient(grad_x, exact.grad_x)
        truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("wrt", ["x", "y"])
@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_one_gradient_is_that_of_both(kernel, value, wrt, two_samples, truth, triton_op):
    """To rounding: on a GPU it is another compilation."""
    x, y = two_samples(2, 70, 11, 40)
    both = triton_op("tile", x, y, kernel)
    one = triton_op("tile", x, y, kernel, wrt=wrt, value=value)
    at = {"x": 1, "y": 2}[wrt]
    truth.assert_gradient(one[at], both[at].double().cpu())
    if value:
        torch.testing.assert_close(one[0], both[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_tiles_in_groups_cover_every_pair_once(kernel, two_samples, truth, triton_op, monkeypatch):
    """Enough rows that tiles are visited in groups, here of three; the last group has fewer."""
    monkeypatch.setattr(value, "GROUP", 3)
    monkeypatch.setattr(value, "FEW_BLOCKS", 1)
    x, y = two_samples(1, 150, 20, 3)
    exact = truth.exact(x, y, kernel, "unbiased")
    ours, _, _ = triton_op("value", x, y, kernel, wrt="none", estimator="unbiased")
    truth.assert_value(ours, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))


# a block of rows at a time; two batch elements, the third alone
@pytest.mark.parametrize("limit", [1, 2 * 64 * 112 * 4])
def test_weights_in_chunks_change_no_bit(limit, two_samples, triton_op, monkeypatch):
    x, y = two_samples(3, 70, 31, 20)
    expected = triton_op("tile", x, y)
    monkeypatch.setattr(tile, "WEIGHTS_BYTES", limit)
    for ours, before in zip(triton_op("tile", x, y), expected, strict=True):
        torch.testing.assert_close(ours, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
@pytest.mark.parametrize("family", ["tile", "value"])
def test_rows_beyond_the_lengths_do_not_exist(family, kernel, dtype, two_samples, truth, triton_op):
    x, y = two_samples(3, 70, 30, 24)
    lengths = {
        "x_lengths": torch.tensor([70, 2, 33], dtype=dtype),
        "y_lengths": torch.tensor([1, 30, 17], dtype=dtype),
    }
    exact = truth.exact(x, y, kernel, **lengths)
    for sample, rows in ((x, lengths["x_lengths"]), (y, lengths["y_lengths"])):
        for points, count in zip(sample, rows, strict=True):
            points[count:] = torch.nan
    wrt = "both" if family == "tile" else "none"
    value, grad_x, grad_y = triton_op(family, x, y, kernel, wrt=wrt, **lengths)
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    if family == "tile":
        truth.assert_gradient(grad_x, exact.grad_x)
        truth.assert_gradient(grad_y, exact.grad_y)
        assert (grad_x[1, 2:] == 0).all()
        assert (grad_y[0, 1:] == 0).all()


@pytest.mark.parametrize("length", [0, -1, 38])
def test_an_invalid_length_gives_nan(length, two_samples, triton_op):
    x, y = two_samples(2, d=40)
    lengths = torch.tensor([length, 37])
    for kernel in (Gaussian(), Polynomial(), Gaussian(bandwidth=3.0)):
        value, _, grad_y = triton_op("tile", x, y, kernel, x_lengths=lengths)
        assert value.isnan().tolist() == [True, False]
        assert grad_y.isnan().any((-2, -1)).tolist() == [True, False]


@pytest.mark.parametrize("bandwidth", [torch.tensor(30.0), torch.tensor([30.0, 5.0])], ids=str)
def test_bandwidth_tensors(bandwidth, two_samples, truth, triton_op):
    x, y = two_samples(d=40)
    kernel = Gaussian(bandwidth=bandwidth)
    exact = truth.exact(x, y, kernel)
    value, _, grad_y = triton_op("tile", x, y, kernel)
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.inf, torch.nan])
def test_a_bad_bandwidth_gives_nan_where_it_is(bad, two_samples, triton_op):
    x, y = two_samples(d=40)
    value, _, grad_y = triton_op("tile", x, y, Gaussian(bandwidth=torch.tensor([bad, 30.0])))
    assert value.isnan().tolist() == [True, False]
    assert grad_y.isnan().any((-2, -1)).tolist() == [True, False]


@pytest.mark.parametrize("family", ["tile", "value"])
@pytest.mark.parametrize("mean", [60.0, 1000.0])
def test_accuracy_does_not_depend_on_the_distance_from_the_origin(
    mean, family, generator, truth, triton_op
):
    x = torch.randn(1, 50, 96, generator=generator) + mean
    y = torch.randn(1, 20, 96, generator=generator) + mean + 0.05
    exact = truth.exact(x, y)
    wrt = "both" if family == "tile" else "none"
    value, grad_x, grad_y = triton_op(family, x, y, wrt=wrt)
    truth.assert_value(value, exact.value)
    if family == "tile":
        truth.assert_gradient(grad_x, exact.grad_x)
        truth.assert_gradient(grad_y, exact.grad_y)


def test_near_duplicates(generator, truth, triton_op):
    x = torch.randn(1, 64, 96, generator=generator).relu() + 17
    y = x[:, :24] + 1e-3 * torch.randn(1, 24, 96, generator=generator)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op("tile", x, y, wrt="y")
    truth.assert_value(value, exact.value)
    # a unit, 2^-23, in each of a few factors: 5e-7 is seen
    truth.assert_gradient(grad_y, exact.grad_y, within=3e-6)


def test_wide_bandwidth_keeps_the_digits_that_one_minus_small_would_cancel(
    generator, truth, triton_op
):
    x = torch.nn.functional.normalize(torch.randn(1, 40, 96, generator=generator), dim=-1)
    y = torch.nn.functional.normalize(torch.randn(1, 30, 96, generator=generator) + 0.3, dim=-1)
    kernel = Gaussian(sigma=100.0, scales=(1.0,))
    exact = truth.exact(x, y, kernel)
    value, _, _ = triton_op("value", x, y, kernel, wrt="none")
    truth.assert_value(value, exact.value, within=1e-6 * exact.value.item())


def test_equal_points_are_at_distance_zero(triton_op):
    x, y = torch.full((2, 20, 33), 0.1), torch.full((2, 9, 33), 0.1)
    for part in triton_op("tile", x, y):
        assert (part == 0).all()


# from numpy, which the interpreter uses, for infinities
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_values_that_are_not_finite_propagate(kernel, bad, two_samples, triton_op):
    x, y = two_samples(d=40)
    x[1, 3, 5] = bad
    value, _, grad_y = triton_op("tile", x, y, kernel)
    assert value.isfinite().tolist() == [True, False]
    assert grad_y.isfinite().all((-2, -1)).tolist() == [True, False]
    alone, _, _ = triton_op("value", x, y, kernel, wrt="none")
    assert alone.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_half_precision_is_read_without_a_copy(kernel, dtype, two_samples, truth, triton_op):
    x, y = (sample.to(dtype) for sample in two_samples(d=40))
    exact = truth.exact(x.float(), y.float(), kernel)
    value, grad_x, grad_y = triton_op("tile", x, y, kernel)
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    truth.assert_gradient(grad_x, exact.grad_x)
    truth.assert_gradient(grad_y, exact.grad_y)
    alone, _, _ = triton_op("value", x, y.float(), kernel, wrt="none")
    truth.assert_value(alone, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))


@pytest.mark.parametrize(("precision", "within"), [("high", 3e-5), ("medium", 3e-2)])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_lower_precisions(kernel, precision, within, two_samples, truth, triton_op):
    """The interpreter shows the rounding of stored points, not that of products."""
    x, y = two_samples(d=80)
    exact = truth.exact(x, y, kernel)
    value, grad_x, grad_y = triton_op("tile", x, y, kernel, precision=precision)
    # the interpreter truncates to bfloat16 where a GPU rounds: points lose 2^-8 on average, their
    # products twice that, and a cube of it three times that again, 2.3e-2
    loose = 8e-4 if isinstance(kernel, Gaussian) else 3e-2
    bound = loose if precision == "medium" else 5e-6
    truth.assert_value(value, exact.value, within=bound * truth.size_of(kernel, exact.value))
    truth.assert_gradient(grad_x, exact.grad_x, within=within)
    truth.assert_gradient(grad_y, exact.grad_y, within=within)
    alone, _, _ = triton_op("value", x, y, kernel, precision=precision, wrt="none")
    truth.assert_value(alone, exact.value, within=bound * truth.size_of(kernel, exact.value))


@pytest.mark.parametrize("family", ["tile", "value"])
def test_bitwise_equal_from_run_to_run(family, two_samples, triton_op):
    x, y = two_samples(2, 70, 40, 20)
    wrt = "both" if family == "tile" else "none"
    first, second = (triton_op(family, x, y, wrt=wrt) for _ in range(2))
    for before, after in zip(first, second, strict=True):
        if before is not None:
            torch.testing.assert_close(before, after, rtol=0, atol=0)
