"""Family D, columns split over programs, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import Gaussian, Polynomial, _launch, _launch_split, _launch_tile

# less than a tile; ragged in every size; blocks of rows in y, then in x and its columns; one row
SHAPES = [(1, 16, 4, 64), (3, 37, 11, 100), (1, 21, 70, 33), (1, 150, 40, 20), (2, 5, 1, 17)]
KERNELS = [Gaussian(), Gaussian(scales=(3.0, 1.0)), Gaussian(bandwidth=40.0), Polynomial()]
BOTH_FORMS = [Gaussian(), Polynomial(2, gamma=0.1, coef0=0.5)]


def two_samples(
    generator: torch.Generator, classes: int = 2, n: int = 37, m: int = 11, d: int = 40
) -> tuple[Tensor, Tensor]:
    """Like a network's features: not negative, many zeros."""
    x = torch.randn(classes, n, d, generator=generator).relu()
    return x, (torch.randn(classes, m, d, generator=generator) + 0.3).relu()


def size_of(kernel: Gaussian | Polynomial, exact: Tensor) -> float:
    """Dot products are not bounded by k(0): their sums are of the size of |x|^2."""
    return 1.0 if isinstance(kernel, Gaussian) else max(1.0, exact.abs().max().item())


@pytest.fixture(autouse=True)
def _no_other_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tiles do not cover goes to family T; nothing here may. And few slices are fast."""
    monkeypatch.setattr(_launch_tile, "run", None)
    monkeypatch.setattr(_launch_split, "PROGRAMS", 16)


@pytest.mark.parametrize("wrt", ["x", "y", "both"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape, wrt, generator, truth, triton_op):
    x, y = two_samples(generator, *shape)
    exact = truth.exact(x, y)
    value, grad_x, grad_y = triton_op("split", x, y, wrt=wrt)
    truth.assert_value(value, exact.value)
    if wrt != "y":
        truth.assert_gradient(grad_x, exact.grad_x)
    if wrt != "x":
        truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("family", ["small", "split", "stream", "tile", "value"])
def test_older_chips_get_tiles_listed_for_them(family, generator, truth, triton_op, monkeypatch):
    """On compute capability 8.0 a family without tiles hands over to T; none fails."""
    monkeypatch.undo()  # T may serve here
    monkeypatch.setattr(_launch, "architecture", lambda device: 80)
    x, y = two_samples(generator, 2, 21, 9, 40)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op(family, x, y, wrt="none" if family == "value" else "y")
    truth.assert_value(value, exact.value)
    if family != "value":
        truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_every_kernel_and_estimator(kernel, estimator, generator, truth, triton_op):
    x, y = two_samples(generator)
    exact = truth.exact(x, y, kernel, estimator)
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y", estimator=estimator)
    truth.assert_value(value, exact.value, within=5e-6 * size_of(kernel, exact.value))
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("programs", [1, 10_000])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_number_of_slices_matters_to_the_last_digits_only(
    kernel, programs, generator, truth, triton_op, monkeypatch
):
    """One slice, and slices of one step, the last of which is not full."""
    x, y = two_samples(generator, 2, 70, 21, 140)
    exact = truth.exact(x, y, kernel)
    monkeypatch.setattr(_launch_split, "PROGRAMS", programs)
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y")
    truth.assert_value(value, exact.value, within=5e-6 * size_of(kernel, exact.value))
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_leaving_the_value_out_and_running_again_change_no_bit(kernel, generator, triton_op):
    x, y = two_samples(generator, 1, 21, 70, 33)
    first = triton_op("split", x, y, kernel)
    for ours, before in zip(triton_op("split", x, y, kernel), first, strict=True):
        torch.testing.assert_close(ours, before, rtol=0, atol=0)
    _, _, grad_y = triton_op("split", x, y, kernel, wrt="y", value=False)
    torch.testing.assert_close(grad_y, first[2], rtol=0, atol=0)


@pytest.mark.parametrize("wrt", ["y", "both"])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_rows_beyond_the_lengths_do_not_exist(kernel, wrt, generator, truth, triton_op):
    x, y = two_samples(generator, 3, 60, 70, 17)
    lengths = {
        "x_lengths": torch.tensor([60, 2, 33]),
        "y_lengths": torch.tensor([1, 70, 17], dtype=torch.int32),
    }
    exact = truth.exact(x, y, kernel, **lengths)
    for side, rows in ((x, lengths["x_lengths"]), (y, lengths["y_lengths"])):
        for points, count in zip(side, rows, strict=True):
            points[count:] = torch.nan
    value, grad_x, grad_y = triton_op("split", x, y, kernel, wrt=wrt, **lengths)
    truth.assert_value(value, exact.value, within=5e-6 * size_of(kernel, exact.value))
    if wrt != "y":
        truth.assert_gradient(grad_x, exact.grad_x)
        assert (grad_x[1, 2:] == 0).all()
    if wrt != "x":
        truth.assert_gradient(grad_y, exact.grad_y)
        assert (grad_y[0, 1:] == 0).all()


@pytest.mark.parametrize("length", [0, -1, 38])
@pytest.mark.parametrize("kernel", [*BOTH_FORMS, Gaussian(bandwidth=3.0)], ids=repr)
def test_an_impossible_length_gives_nan(kernel, length, generator, triton_op):
    x, y = two_samples(generator)
    value, _, grad_y = triton_op(
        "split", x, y, kernel, wrt="y", x_lengths=torch.tensor([length, 37])
    )
    assert value.isnan().tolist() == [True, False]
    assert grad_y.isnan().any((-2, -1)).tolist() == [True, False]


@pytest.mark.parametrize("bandwidth", [torch.tensor(30.0), torch.tensor([30.0, 5.0])], ids=str)
def test_bandwidth_tensors(bandwidth, generator, truth, triton_op):
    x, y = two_samples(generator)
    kernel = Gaussian(bandwidth=bandwidth)
    exact = truth.exact(x, y, kernel)
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y")
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.inf, torch.nan])
def test_a_bad_bandwidth_gives_nan_where_it_is(bad, generator, triton_op):
    x, y = two_samples(generator)
    kernel = Gaussian(bandwidth=torch.tensor([bad, 30.0]))
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y")
    assert value.isnan().tolist() == [True, False]
    assert grad_y.isnan().any((-2, -1)).tolist() == [True, False]


@pytest.mark.parametrize("mean", [60.0, 1000.0])
def test_accuracy_does_not_depend_on_the_distance_from_the_origin(
    mean, generator, truth, triton_op
):
    x = torch.randn(1, 50, 96, generator=generator) + mean
    y = torch.randn(1, 20, 96, generator=generator) + mean + 0.05
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op("split", x, y, wrt="y")
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


def test_near_duplicates(generator, truth, triton_op):
    x = torch.randn(1, 64, 96, generator=generator).relu() + 17
    y = x[:, :24] + 1e-3 * torch.randn(1, 24, 96, generator=generator)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op("split", x, y, wrt="y")
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("rows", [9, 70])
def test_equal_points_are_at_distance_zero(rows, triton_op):
    x, y = torch.full((2, 20, 33), 0.1), torch.full((2, rows, 33), 0.1)
    value, _, grad_y = triton_op("split", x, y, wrt="y")
    assert (value == 0).all()
    assert (grad_y == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
# numpy, under the interpreter, on infinities
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_shows(kernel, bad, generator, triton_op):
    x, y = two_samples(generator)
    x[1, 3, 5] = bad
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y")
    assert value.isfinite().tolist() == [True, False]
    assert grad_y.isfinite().all((-2, -1)).tolist() == [True, False]
