"""Kernel ridge regression against scikit-learn's, and its gradient against differences."""

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from m3d_fast.methods.ridge import ridge_losses
from tests.helpers.condensers import digits_condenser, digits_settings


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize(("groups", "count"), [(2, 1), (5, 3)])
def test_it_is_the_error_of_kernel_ridge_regression(gaussian, groups, count) -> None:
    real = torch.randn(groups, 7, 4, dtype=torch.float64) + torch.arange(groups)[:, None, None]
    synthetic = torch.randn(groups, count, 4, dtype=torch.float64)
    centre = real.mean((0, 1))
    x = (synthetic - centre).flatten(0, 1).numpy()
    y = (real - centre).flatten(0, 1).numpy()
    bandwidth = 2 * np.square(y).sum(1).mean()
    diagonal = 1.0 if gaussian else np.square(x).sum(1).mean()
    kernel = {"kernel": "rbf", "gamma": 1 / bandwidth} if gaussian else {"kernel": "linear"}
    labels = np.eye(groups) - 1 / groups
    model = KernelRidge(alpha=0.01 * diagonal, **kernel).fit(x, labels.repeat(count, 0))
    errors = np.square(model.predict(y) - labels.repeat(7, 0)).sum(1).reshape(groups, 7).mean(1)
    losses = ridge_losses(real, synthetic, gaussian=gaussian, ridge=0.01)
    np.testing.assert_allclose(losses.numpy(), errors, rtol=1e-8)


@pytest.mark.parametrize("gaussian", [False, True])
def test_its_gradient_is_the_derivative(gaussian) -> None:
    real = torch.randn(3, 5, 4, dtype=torch.float64)
    synthetic = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s: ridge_losses(real, s, gaussian=gaussian, ridge=0.05), synthetic
    )


def test_images_that_repeat_the_real_ones_predict_them() -> None:
    real = 5 * torch.randn(4, 3, 30)
    other = 5 * torch.randn(4, 3, 30)
    assert ridge_losses(real, real).max() < 1e-4
    assert ridge_losses(real, other).min() > 0.1
    rough = ridge_losses(real, real.half().float())
    assert rough.isfinite().all()


def test_it_is_a_term_over_all_classes() -> None:
    settings = digits_settings(add={"ridge": 2.0}, real_batch=6, compile=False)
    assert settings.scope == "group"
    condenser = digits_condenser(settings)
    losses = condenser.step(0).losses
    assert condenser.method.terms == ("mmd2", "ridge")
    assert len(condenser.chunks) == 1
    assert (losses[:, 1] > 0).all()
    assert losses[:, 1].max() < 2 * 1.5, "an error of squares around 1"
