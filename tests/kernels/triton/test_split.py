"""The split family, beyond what test_families.py tests; all families on older devices."""

import pytest
import torch

from m3d_fast.kernels.triton import dispatch, split
from m3d_fast.kernels.triton.configs import Chip
from tests.helpers.triton_kernels import BOTH_FORMS


@pytest.mark.parametrize("family", ["small", "split", "stream", "tile", "value"])
def test_older_chips_get_tiles_listed_for_them(family, two_samples, truth, triton_op, monkeypatch):
    """On compute capability 8.0 the tile family serves for a family without tiles; none fails."""
    monkeypatch.setattr(dispatch, "read_chip", lambda device: Chip(80, 166912))
    x, y = two_samples(2, 21, 9, 40)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op(family, x, y, wrt="none" if family == "value" else "y")
    truth.assert_value(value, exact.value)
    if family != "value":
        truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.usefixtures("no_tile_family")
@pytest.mark.parametrize("programs", [1, 10_000])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_the_number_of_slices_changes_rounding_only(
    kernel, programs, two_samples, truth, triton_op, monkeypatch
):
    """One slice, and slices of one step, the last of which is not full."""
    x, y = two_samples(2, 70, 21, 140)
    exact = truth.exact(x, y, kernel)
    monkeypatch.setattr(split, "PROGRAMS", programs)
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y")
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.usefixtures("no_tile_family")
@pytest.mark.parametrize("mean", [1.0, 100.0, 1000.0])
def test_the_gradient_keeps_its_digits_far_from_the_origin(
    mean, generator, truth, triton_op, monkeypatch
):
    """Each row's weights add to zero on the diagonal: 2.8e-7, and 4.1e-7 if subtracted after."""
    monkeypatch.setattr(split, "PROGRAMS", 24)
    x = torch.randn(1, 60, 300, generator=generator) + mean
    y = torch.randn(1, 21, 300, generator=generator) + mean + 0.05
    _, _, grad_y = triton_op("split", x, y, wrt="y", value=False)
    assert truth.relative_error(grad_y, truth.exact(x, y).grad_y) < 1.2e-6
