"""The small family, beyond what test_families.py tests."""

import pytest

pytestmark = pytest.mark.usefixtures("no_tile_family")


@pytest.mark.parametrize(
    ("precision", "shape"),
    [("high", (2, 64, 90, 40)), ("medium", (1, 200, 40, 40)), ("medium", (1, 40, 90, 40))],
)
def test_tiles_of_other_precisions_cover_their_samples(
    precision, shape, two_samples, truth, triton_op
):
    """About the tiles: in the interpreter every precision is float32."""
    x, y = two_samples(*shape)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op("small", x, y, wrt="y", precision=precision)
    truth.assert_value(value, exact.value, within=3e-5 if value.is_cuda else 5e-6)
    truth.assert_gradient(grad_y, exact.grad_y, within={"high": 3e-5, "medium": 1.5e-2}[precision])
