"""Kernel ridge regression of real images' labels from synthetic ones (arXiv 2011.00050, KIP).

The synthetic features of a group of classes are the training set of a ridge regression, which has a
closed form; the loss is its error on the group's real images. Unlike a distance of distributions it
sees what tells the classes apart.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .combined import Term
from .protocol import Network, Scope


class Ridge(Term):
    """Error of the Gaussian kernel's ridge regression on last features, over a group of classes.

    Ours: with weight 1 its gradient is about as long as that of M3D's loss (0.3 to 1.6 times, on
    digits at 1 and 4 images per class). The classes share one augmentation, which
    would tell them apart otherwise.
    """

    name: ClassVar[str] = "ridge"
    scope: ClassVar[Scope] = "group"

    def read_real(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """Last features, ``(k, n, D)``."""
        return network.embed(images)

    def read_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """Last features, ``(k, n, D)``."""
        return network.embed(images)

    def loss(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """:func:`ridge_losses`, ``(k,)``."""
        return ridge_losses(real, synthetic)


def ridge_losses(
    real: Tensor, synthetic: Tensor, *, gaussian: bool = True, ridge: float = 1e-3
) -> Tensor:
    """Squared error of the regression on the real images of each class.

    Args:
        real, synthetic, gaussian, ridge: as in :func:`predict_labels`.

    Returns:
        ``(G,)``: the squared error, summed over the outputs, of a class's images, their mean.
    """
    predicted = predict_labels(real, synthetic, gaussian=gaussian, ridge=ridge)
    return (predicted - centre_labels(synthetic)[:, None]).square().sum(2).mean(1)


def centre_labels(features: Tensor) -> Tensor:
    """One-hot labels of G classes minus their mean, ``(G, G)``, for ``(G, n, D)`` features."""
    groups = len(features)
    return torch.eye(groups, dtype=features.dtype, device=features.device) - 1 / groups


def predict_labels(
    real: Tensor, synthetic: Tensor, *, gaussian: bool = True, ridge: float = 1e-3
) -> Tensor:
    """Labels that the regression predicts for real images.

    With K the kernel matrix of features centred by the mean of the real ones, and Y the one-hot
    labels minus their mean, they are ``K_rs (K_ss + ridge mean(diag K_ss) I)^-1 Y_s``.

    Args:
        real: ``(G, n, D)`` features of the classes of one group, float32 or float64.
        synthetic: ``(G, m, D)``; the result is differentiable in it.
        gaussian: whether K is one Gaussian, ``exp(-|a-b|^2 / b)`` with b twice the mean squared
            norm of the centred real features (no gradient), instead of linear.
        ridge: in units of the mean diagonal of K_ss.

    Returns:
        ``(G, n, G)``, labels minus their mean.
    """
    groups, count = synthetic.shape[:2]
    centre = real.mean((0, 1))
    x, y = (synthetic - centre).flatten(0, 1), (real - centre).flatten(0, 1)
    within, across = x @ x.T, y @ x.T
    if gaussian:
        bandwidth = 2 * y.square().sum(1).mean()
        squares = x.square().sum(1)
        within = _gaussian(squares[:, None] + squares - 2 * within, bandwidth)
        across = _gaussian(y.square().sum(1)[:, None] + squares - 2 * across, bandwidth)
    diagonal = within.diagonal().mean() * ridge
    system = within + diagonal * torch.eye(len(within), dtype=x.dtype, device=x.device)
    # cholesky_ex does not wait for a GPU; with the ridge the matrix is positive definite
    factor, _ = torch.linalg.cholesky_ex(system)
    labels = centre_labels(synthetic).repeat_interleave(count, 0)
    return (across @ torch.cholesky_solve(labels, factor)).unflatten(0, (groups, -1))


def _gaussian(distances: Tensor, bandwidth: Tensor) -> Tensor:
    # rounding can push a distance below zero
    return torch.exp(-distances.clamp_min(0) / bandwidth)
