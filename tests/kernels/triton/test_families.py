"""What holds for the small, split and stream families alike, against the definition."""

from typing import NamedTuple

import pytest
import torch

from m3d_fast.kernels import Gaussian, Polynomial
from m3d_fast.kernels.triton import split
from tests.helpers.triton_kernels import BOTH_FORMS

pytestmark = pytest.mark.usefixtures("no_tile_family")
KERNELS = [Gaussian(), Gaussian(scales=(3.0, 1.0)), Gaussian(bandwidth=40.0), Polynomial()]


class Cases(NamedTuple):
    """Sizes that reach every part of its kernels; a shape is (C, N, M, D)."""

    name: str
    shapes: list[tuple[int, int, int, int]]
    odd: int  # columns: not a power of two, nor a multiple of a block
    many: int  # columns of hard data


FAMILIES = {
    # less than a tile; ragged in every size; two blocks of rows in y, then in x; single rows
    "small": Cases(
        "small",
        [(1, 16, 4, 64), (3, 37, 11, 100), (2, 21, 70, 33), (1, 100, 40, 20), (2, 5, 1, 7)],
        33,
        96,
    ),
    # the same; blocks of rows in y, then in x and its columns
    "split": Cases(
        "split",
        [(1, 16, 4, 64), (3, 37, 11, 100), (1, 21, 70, 33), (1, 150, 40, 20), (2, 5, 1, 17)],
        33,
        96,
    ),
    # the same; several blocks of both; plain float32
    "stream": Cases(
        "stream",
        [(1, 16, 4, 32), (3, 37, 11, 30), (1, 70, 150, 23), (2, 5, 1, 17), (1, 130, 66, 10)],
        29,
        32,
    ),
}
SHAPES = [(family.name, shape) for family in FAMILIES.values() for shape in family.shapes]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Cases:
    return FAMILIES[request.param]


@pytest.fixture(autouse=True)
def _few_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer programs, which the interpreter runs one by one; as many slices without the value.

    Few rows are eight here; test_split.py has two.
    """
    monkeypatch.setattr(split, "PROGRAMS", 24)
    monkeypatch.setattr(split, "FEW_ROWS", split.WEIGHTS.blocks["BLOCK_R"])


@pytest.mark.parametrize("wrt", ["x", "y", "both"])
@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=str)
def test_value_and_gradients(name, shape, wrt, two_samples, truth, triton_op):
    x, y = two_samples(*shape)
    exact = truth.exact(x, y)
    value, grad_x, grad_y = triton_op(name, x, y, wrt=wrt)
    truth.assert_value(value, exact.value)
    if wrt != "y":
        truth.assert_gradient(grad_x, exact.grad_x)
    if wrt != "x":
        truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("wrt", ["y", "both"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_every_kernel_and_estimator(family, kernel, estimator, wrt, two_samples, truth, triton_op):
    x, y = two_samples(d=family.odd)
    exact = truth.exact(x, y, kernel, estimator)
    value, _, grad_y = triton_op(family.name, x, y, kernel, wrt=wrt, estimator=estimator)
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_results_are_bitwise_equal_from_run_to_run_and_the_same_without_the_value(
    family, kernel, two_samples, truth, triton_op
):
    """Without the value to rounding: on a GPU that is another compilation."""
    x, y = two_samples(1, 21, 70, family.odd)
    first = triton_op(family.name, x, y, kernel)
    for ours, before in zip(triton_op(family.name, x, y, kernel), first, strict=True):
        torch.testing.assert_close(ours, before, rtol=0, atol=0)
    _, _, grad_y = triton_op(family.name, x, y, kernel, wrt="y", value=False)
    truth.assert_gradient(grad_y, first[2].double().cpu())


@pytest.mark.parametrize("wrt", ["x", "y", "both"])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_rows_beyond_the_lengths_do_not_exist(family, kernel, wrt, two_samples, truth, triton_op):
    x, y = two_samples(3, 60, 70, 17)
    lengths = {
        "x_lengths": torch.tensor([60, 2, 33]),
        "y_lengths": torch.tensor([1, 70, 17], dtype=torch.int32),
    }
    exact = truth.exact(x, y, kernel, **lengths)
    for sample, rows in ((x, lengths["x_lengths"]), (y, lengths["y_lengths"])):
        for points, count in zip(sample, rows, strict=True):
            points[count:] = torch.nan
    value, grad_x, grad_y = triton_op(family.name, x, y, kernel, wrt=wrt, **lengths)
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    if wrt != "y":
        truth.assert_gradient(grad_x, exact.grad_x)
        assert (grad_x[1, 2:] == 0).all()
    if wrt != "x":
        truth.assert_gradient(grad_y, exact.grad_y)
        assert (grad_y[0, 1:] == 0).all()


@pytest.mark.parametrize("length", [0, -1, 38])
@pytest.mark.parametrize("kernel", [*BOTH_FORMS, Gaussian(bandwidth=3.0)], ids=repr)
def test_an_invalid_length_gives_nan(family, kernel, length, two_samples, triton_op):
    x, y = two_samples(d=family.odd)
    value, _, grad_y = triton_op(
        family.name, x, y, kernel, wrt="y", x_lengths=torch.tensor([length, 37])
    )
    assert value.isnan().tolist() == [True, False]
    assert grad_y.isnan().any((-2, -1)).tolist() == [True, False]


@pytest.mark.parametrize("bandwidth", [torch.tensor(30.0), torch.tensor([30.0, 5.0])], ids=str)
def test_bandwidth_tensors(family, bandwidth, two_samples, truth, triton_op):
    x, y = two_samples(d=family.odd)
    kernel = Gaussian(bandwidth=bandwidth)
    exact = truth.exact(x, y, kernel)
    value, _, grad_y = triton_op(family.name, x, y, kernel, wrt="y")
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.inf, torch.nan])
def test_a_bad_bandwidth_gives_nan_where_it_is(family, bad, two_samples, triton_op):
    x, y = two_samples(d=family.odd)
    kernel = Gaussian(bandwidth=torch.tensor([bad, 30.0]))
    value, _, grad_y = triton_op(family.name, x, y, kernel, wrt="y")
    assert value.isnan().tolist() == [True, False]
    assert grad_y.isnan().any((-2, -1)).tolist() == [True, False]


@pytest.mark.parametrize("mean", [60.0, 1000.0])
def test_accuracy_does_not_depend_on_the_distance_from_the_origin(
    family, mean, generator, truth, triton_op
):
    x = torch.randn(1, 50, family.many, generator=generator) + mean
    y = torch.randn(1, 20, family.many, generator=generator) + mean + 0.05
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op(family.name, x, y, wrt="y")
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


def test_near_duplicates(family, generator, truth, triton_op):
    x = torch.randn(1, 64, family.many, generator=generator).relu() + 17
    y = x[:, :24] + 1e-3 * torch.randn(1, 24, family.many, generator=generator)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op(family.name, x, y, wrt="y")
    truth.assert_value(value, exact.value)
    # a unit, 2^-23, in each of a few factors: 6.5e-7 is seen
    truth.assert_gradient(grad_y, exact.grad_y, within=3e-6)


@pytest.mark.parametrize("rows", [9, 70])
def test_equal_points_are_at_distance_zero(family, rows, triton_op):
    x, y = torch.full((2, 20, family.odd), 0.1), torch.full((2, rows, family.odd), 0.1)
    value, _, grad_y = triton_op(family.name, x, y, wrt="y")
    assert (value == 0).all()
    assert (grad_y == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
# from numpy, which the interpreter uses, for infinities
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_values_that_are_not_finite_propagate(family, kernel, bad, two_samples, triton_op):
    x, y = two_samples(d=family.odd)
    x[1, 3, 5] = bad
    value, _, grad_y = triton_op(family.name, x, y, kernel, wrt="y")
    assert value.isfinite().tolist() == [True, False]
    assert grad_y.isfinite().all((-2, -1)).tolist() == [True, False]
