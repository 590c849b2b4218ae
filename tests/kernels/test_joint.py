"""Class-conditional and joint MMD against loops over classes and products of matrices."""

import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import Energy, Gaussian, class_conditional_mmd2, joint_mmd2, mmd2
from tests.helpers.mmd_truth import stacked_gram

KERNEL = Gaussian(sigma=1.5)


@pytest.fixture
def samples(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(30, 5, generator=generator, dtype=torch.float64) + 0.4
    # class 3 is in x alone
    return x, y, torch.arange(40) % 4, torch.arange(30) % 3


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_it_is_the_mean_of_a_loop_over_shared_classes(estimator, samples):
    x, y, a, b = samples
    x.requires_grad_()
    parts = [mmd2(x[a == c], y[b == c], KERNEL, estimator=estimator) for c in range(3)]
    expected = torch.stack(parts).mean()
    value = class_conditional_mmd2(x, y, a, b, KERNEL, estimator=estimator)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0]
    )


def test_probabilities_weigh_the_rows(samples):
    """Local MMD (Zhu et al. 2020, eq. 6), matrix by matrix."""
    x, y, a, _ = samples
    probabilities = torch.rand(30, 4, dtype=torch.float64)
    k = stacked_gram(torch.cat([x, y]), KERNEL)
    expected = 0.0
    for c in range(4):
        u, v = (a == c).double(), probabilities[:, c]
        w = torch.cat([u / u.sum(), -v / v.sum()])
        expected += w @ k @ w / 4
    value = class_conditional_mmd2(x, y, a, probabilities, KERNEL)
    torch.testing.assert_close(value, expected)


def test_joint_mmd_is_that_of_the_product_of_the_layers_matrices(samples):
    x, y, *_ = samples
    layers = [x, x[:, :2].square()], [y, y[:, :2].square()]
    k = stacked_gram(torch.cat([x, y]), KERNEL)
    k = k * stacked_gram(torch.cat([layers[0][1], layers[1][1]]), Gaussian())
    expected = k[:40, :40].mean() + k[40:, 40:].mean() - 2 * k[:40, 40:].mean()
    torch.testing.assert_close(joint_mmd2(*layers, [KERNEL, Gaussian()]), expected)
    assert joint_mmd2([x], [y]).item() == pytest.approx(mmd2(x, y).item())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, c: class_conditional_mmd2(x, x, c[:3], c), ValueError, r"x_classes: .* \(6,\)"),
        (lambda x, c: class_conditional_mmd2(x, x, c, -c), ValueError, "y_classes: .*, got -5"),
        (
            lambda x, c: class_conditional_mmd2(x, x, c, [1]),
            TypeError,
            "y_classes: expected a ten",
        ),
        (
            lambda x, c: class_conditional_mmd2(x, x, c, -torch.ones(6, 6)),
            ValueError,
            "y_classes: expected probabilities of at least 0",
        ),
        (
            lambda x, c: class_conditional_mmd2(x, x, c, torch.ones(6, 2)),
            ValueError,
            "y_classes: expected 6 classes, as in the other sample, got 2",
        ),
        (
            lambda x, c: class_conditional_mmd2(x, x, c, c, estimator="unbiased"),
            ValueError,
            "expected a class with 2 rows in both samples",
        ),
        (lambda x, c: joint_mmd2([x], [x, x]), ValueError, "expected as many layers .*, got 1, 2"),
        (
            lambda x, c: joint_mmd2([x, x[:2]], [x, x], [Energy()] * 2),
            ValueError,
            "x: expected layers of the same rows",
        ),
    ],
)
def test_invalid_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randn(6, 3), torch.arange(6))
