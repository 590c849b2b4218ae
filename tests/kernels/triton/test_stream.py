"""The stream family, beyond what test_families.py tests."""

import pytest

pytestmark = pytest.mark.usefixtures("no_tile_family")


@pytest.mark.parametrize(("precision", "columns"), [("high", 50), ("medium", 100)])
def test_other_precisions_hold_more_columns(precision, columns, two_samples, truth, triton_op):
    x, y = two_samples(1, 70, 40, columns)
    exact = truth.exact(x, y)
    value, _, grad_y = triton_op("stream", x, y, precision=precision)
    # "medium" stores bfloat16, to which the interpreter truncates instead of rounding
    value_within, within = {"high": (5e-6, 3e-5), "medium": (3e-4, 1.5e-2)}[precision]
    truth.assert_value(value, exact.value, within=value_within)
    truth.assert_gradient(grad_y, exact.grad_y, within=within)
