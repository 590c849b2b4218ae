"""DM with second and third moments, against plain float64."""

import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.methods import Reading, build_method


@pytest.mark.parametrize("count", [1, 4])
def test_raw_moments_of_each_feature_are_compared(count: int) -> None:
    real = torch.randn(3, 9, 6, dtype=torch.float64)
    synthetic = torch.randn(3, count, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for c, (x, y) in enumerate(zip(real, synthetic, strict=True)):
        for power, weight in ((1, 1.0), (2, 0.5), (3, 2.0)):
            moments = [sum(row**power for row in rows) / len(rows) for rows in (x, y)]
            expected[c, power - 1] = weight * (moments[0] - moments[1]).pow(2).sum()
    (gradient,) = torch.autograd.grad(expected.sum(), synthetic)
    method = build_method("moments", {"second": "0.5", "third": 2})
    losses, objective = method.losses(Reading((real,)), Reading((synthetic,)), True)
    assert losses is not None
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(torch.autograd.grad(objective, synthetic)[0], gradient)


def test_without_higher_moments_it_is_dm() -> None:
    readings = Reading((torch.randn(2, 5, 6),)), Reading((torch.randn(2, 3, 6),))
    losses, _ = build_method("moments", {"second": 0, "third": 0}).losses(*readings, True)
    dm, _ = build_method("dm", {}).losses(*readings, True)
    assert losses is not None
    assert dm is not None
    assert torch.equal(losses[:, :1], dm)
    assert (losses[:, 1:] == 0).all()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match="third: expected a number of at least 0, got -1"):
        build_method("moments", {"third": -1})
