"""SamplesLoss against GeomLoss's formulas: half the norm of a difference of weighted measures."""

import pytest
import torch
from torch import Tensor

from m3d_fast.adapters import SamplesLoss


def kernel_norm(a: Tensor, x: Tensor, b: Tensor, y: Tensor, loss: str, blur: float) -> Tensor:
    """1/2 <a - b, k (a - b)>, point by point."""
    z, w = torch.cat([x, y]), torch.cat([a, -b])
    squared = (z[:, None] - z[None]).square().sum(-1)
    distance = torch.where(squared > 0, squared.clamp_min(1e-300).sqrt(), 0.0)
    k = {
        "gaussian": torch.exp(-squared / (2 * blur**2)),
        "laplacian": torch.exp(-distance / blur),
        "energy": -distance,
    }[loss]
    return 0.5 * w @ k @ w


@pytest.mark.parametrize("loss", ["gaussian", "laplacian", "energy"])
def test_loss_and_gradient_are_those_of_the_formula(loss, generator):
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randn(20, 3, generator=generator, dtype=torch.float64) + 0.3
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 for n in (30, 20))
    b = b * a.sum() / b.sum()
    host = SamplesLoss(loss, blur=0.7)
    uniform = torch.ones(30).double() / 30, torch.ones(20).double() / 20
    for given, weights in (((x, y), uniform), ((a, x, b, y), (a, b))):
        expected = kernel_norm(weights[0], x, weights[1], y, loss, 0.7)
        torch.testing.assert_close(host(*given), expected)
        gradients = (torch.autograd.grad(value, x)[0] for value in (host(*given), expected))
        torch.testing.assert_close(*gradients)


def test_a_batch_gives_a_loss_each(generator):
    x, y = torch.randn(2, 4, 12, 3, generator=generator)
    host = SamplesLoss("energy")
    values = host(x, y)
    assert values.shape == (4,)
    torch.testing.assert_close(values[2], host(x[2], y[2]))


def test_it_is_that_of_geomloss(generator):
    geomloss = pytest.importorskip("geomloss")
    x, y = torch.randn(2, 25, 3, generator=generator)
    a = torch.rand(25, generator=generator)
    a = a / a.sum()
    for loss in ("gaussian", "laplacian", "energy"):
        theirs = geomloss.SamplesLoss(loss, blur=0.5, backend="tensorized")
        torch.testing.assert_close(
            SamplesLoss(loss, 0.5)(a, x, a, y), theirs(a, x, a, y), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: SamplesLoss("sinkhorn"), ValueError, "loss: expected 'gaussian', .*'sinkhorn'"),
        (lambda x: SamplesLoss(blur=0.0), ValueError, "blur: expected a positive number, got 0.0"),
        (lambda x: SamplesLoss()(x), TypeError, "got 1 arguments"),
        (
            lambda x: SamplesLoss()(torch.ones(4), x, torch.ones(4) * 2, x),
            ValueError,
            r"weights: expected equal sums, got 4.0 and 8.0",
        ),
        (lambda x: SamplesLoss()(x, x.to("meta")), ValueError, "expected one device"),
    ],
)
def test_invalid_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randn(4, 3))
