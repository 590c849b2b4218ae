"""Family S, a program per block of rows: beyond what test_families.py says of it."""

import pytest

from m3d_fast.kernels.triton import tile


@pytest.fixture(autouse=True)
def _no_other_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples too large for the tiles go to family T; none here may."""
    monkeypatch.setattr(tile, "run", None)


@pytest.mark.parametrize(
    ("precision", "shape"),
    [("high", (2, 64, 90, 40)), ("medium", (1, 200, 40, 40)), ("medium", (1, 40, 90, 40))],
)
def test_tiles_of_other_precisions_cover_their_samples(
    precision, shape, two_samples, truth, triton_op
):
    """In the interpreter all are float32: this is about the tiles."""
    x, y = two_samples(*shape)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op("small", x, y, wrt="y", precision=precision)
    truth.assert_value(value, exact.value, within=3e-5 if value.is_cuda else 5e-6)
    truth.assert_gradient(grad_y, exact.grad_y, within={"high": 3e-5, "medium": 1.5e-2}[precision])
