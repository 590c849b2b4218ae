"""Family D, columns split over programs: beyond what test_families.py says of it."""

import pytest

from m3d_fast.kernels import Gaussian, Polynomial
from m3d_fast.kernels.triton import dispatch, split, tile

BOTH_FORMS = [Gaussian(), Polynomial(2, gamma=0.1, coef0=0.5)]


@pytest.mark.parametrize("family", ["small", "split", "stream", "tile", "value"])
def test_older_chips_get_tiles_listed_for_them(family, two_samples, truth, triton_op, monkeypatch):
    """On compute capability 8.0 a family without tiles hands over to T; none fails."""
    monkeypatch.setattr(dispatch, "architecture", lambda device: 80)
    x, y = two_samples(2, 21, 9, 40)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op(family, x, y, wrt="none" if family == "value" else "y")
    truth.assert_value(value, exact.value)
    if family != "value":
        truth.assert_gradient(grad_y, exact.grad_y)


@pytest.mark.parametrize("programs", [1, 10_000])
@pytest.mark.parametrize("kernel", BOTH_FORMS, ids=repr)
def test_number_of_slices_matters_to_the_last_digits_only(
    kernel, programs, two_samples, truth, triton_op, monkeypatch
):
    """One slice, and slices of one step, the last of which is not full."""
    x, y = two_samples(2, 70, 21, 140)
    exact = truth.exact(x, y, kernel)
    monkeypatch.setattr(tile, "run", None)  # which takes what the tiles do not cover
    monkeypatch.setattr(split, "PROGRAMS", programs)
    value, _, grad_y = triton_op("split", x, y, kernel, wrt="y")
    truth.assert_value(value, exact.value, within=5e-6 * truth.size_of(kernel, exact.value))
    truth.assert_gradient(grad_y, exact.grad_y)
