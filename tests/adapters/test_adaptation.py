"""The layer of pytorch-adapt, against its formulas."""

import pytest
import torch
from torch import Tensor

from m3d_fast.adapters import MMDAdaptationLoss

SCALES = torch.tensor([0.5, 1.0, 2.0])


def matrices(x: Tensor, y: Tensor, scales: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    squared = [(a[:, None] - b[None]).square().sum(-1) for a, b in ((x, x), (y, y), (x, y))]
    median = squared[0].detach().median()
    xx, yy, xy = (
        torch.stack([torch.exp(-d * s / median) for s in scales]).mean(0) for d in squared
    )
    return xx, yy, xy


def quadratic(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    n, m = len(xx), len(yy)
    within = (xx.sum() - xx.diag().sum()) / (n * n - n) + (yy.sum() - yy.diag().sum()) / (m * m - m)
    return within - 2 * xy.mean()


def linear(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    i = torch.arange(0, len(xx) // 2 * 2, 2)
    return (xx[i, i + 1] + yy[i, i + 1] - xy[i, i + 1] - xy[i + 1, i]).mean()


@pytest.mark.parametrize("scales", [1.0, SCALES], ids=["one", "three"])
@pytest.mark.parametrize(("kind", "formula"), [("quadratic", quadratic), ("linear", linear)])
@pytest.mark.parametrize("layers", [1, 2])
def test_loss_and_gradient_are_those_of_the_formula(scales, kind, formula, layers, generator):
    x = torch.randn(15, 4, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randn(15, 4, generator=generator, dtype=torch.float64) + 0.5
    xs, ys = [x, x[:, :2].exp()][:layers], [y, y[:, :2].exp()][:layers]
    listed = torch.as_tensor(scales).flatten().tolist()
    product = [
        torch.stack(parts).prod(0)
        for parts in zip(
            *(matrices(a, b, listed) for a, b in zip(xs, ys, strict=True)), strict=True
        )
    ]
    expected = formula(*product)
    loss = MMDAdaptationLoss(scales, kind)
    value = loss(xs[0], ys[0]) if layers == 1 else loss(xs, ys)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, x, retain_graph=True)[0], torch.autograd.grad(expected, x)[0]
    )


def test_it_is_that_of_pytorch_adapt(generator):
    layers = pytest.importorskip("pytorch_adapt.layers")
    x, y = torch.randn(2, 12, 5, generator=generator)
    for kind in ("linear", "quadratic"):
        theirs = layers.MMDLoss(SCALES, kind)
        torch.testing.assert_close(MMDAdaptationLoss(SCALES, kind)(x, y), theirs(x, y))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: MMDAdaptationLoss(mmd_type="cubic"), "mmd_type: expected 'linear' or"),
        (lambda x: MMDAdaptationLoss(-1.0), "kernel_scales: expected positive numbers, got -1.0"),
        (lambda x: MMDAdaptationLoss(bandwidth=0.0), "bandwidth: expected a positive number"),
        (lambda x: MMDAdaptationLoss()(x, x[:3]), r"got \(6, 3\) and \(3, 3\)"),
        (lambda x: MMDAdaptationLoss(mmd_type="quadratic")([x], [x, x]), "as many layers"),
        (lambda x: MMDAdaptationLoss()([x, x], [x]), "as many layers"),
    ],
)
def test_invalid_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.randn(6, 3))
