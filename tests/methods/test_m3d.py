"""M3D's loss and gradient under every kernel, against plain float64."""

import pytest
import torch
from torch import Tensor

from m3d_fast.methods import Reading, build_method


def sum_of_kernels(options: dict, a: Tensor, b: Tensor, bandwidth: Tensor) -> Tensor:
    kernel = options.get("kernel", "gaussian")
    if kernel == "linear":
        return a @ b.T
    if kernel == "polynomial":
        return (a @ b.T + options.get("coef0", 1.0)) ** options.get("degree", 2)
    distances = (a[:, None] - b).square().sum(-1)
    if kernel == "gammas":
        return sum(torch.exp(-gamma * distances) for gamma in (0.1, 1.0, 5.0))
    fixed = options.get("bandwidth", bandwidth)
    scales = options.get("scales", (0.25, 0.5, 1.0, 2.0, 4.0))
    return sum(torch.exp(-distances / (fixed * scale)) for scale in scales)


def plain_loss(options: dict, real: Tensor, synthetic: Tensor) -> Tensor:
    """Equation 9 of the paper, for one class."""
    both = torch.cat([real, synthetic]).detach()
    distances = (both[:, None] - both).square().sum()
    mean = distances / (len(both) * (len(both) - 1))
    pairs = ((synthetic, synthetic), (synthetic, real), (real, real))
    within, across, fixed = (sum_of_kernels(options, *pair, mean).mean() for pair in pairs)
    return within - 2 * across + fixed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bandwidth": 2.0, "scales": (0.5, 3.0)},
        {"kernel": "linear"},
        {"kernel": "polynomial"},
        {"kernel": "polynomial", "degree": 3, "coef0": 0.5},
        {"kernel": "gammas"},
    ],
    ids=str,
)
def test_it_is_the_mmd_of_the_features(options: dict) -> None:
    real = 0.3 * torch.randn(3, 9, 6, dtype=torch.float64)
    synthetic = (0.3 * torch.randn(3, 4, 6, dtype=torch.float64)).requires_grad_()
    expected = torch.stack([plain_loss(options, *pair) for pair in zip(real, synthetic, strict=1)])
    (gradient,) = torch.autograd.grad(expected.sum(), synthetic, retain_graph=True)
    method = build_method("m3d", options)
    losses, objective = method.losses(Reading((real,)), Reading((synthetic,)), True)
    assert losses is not None
    torch.testing.assert_close(losses[:, 0], expected.detach(), atol=1e-9, rtol=1e-9)
    (ours,) = torch.autograd.grad(objective, synthetic)
    torch.testing.assert_close(ours, gradient, atol=1e-9, rtol=1e-9)
    nothing, objective = method.losses(Reading((real,)), Reading((synthetic,)), False)
    assert nothing is None
    torch.testing.assert_close(torch.autograd.grad(objective, synthetic)[0], gradient)
