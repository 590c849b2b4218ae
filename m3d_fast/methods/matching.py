"""Matching features by an MMD: the common part of the objectives."""

from torch import Tensor
from torch.profiler import record_function

from ..kernels import Gaussian, Linear, mmd2_and_grad
from .protocol import Embedder, Views


def match_features(
    embed: Embedder, real: Views, synthetic: Views, kernel: Gaussian | Linear, value: bool
) -> tuple[Tensor | None, Tensor]:
    """Squared MMD of the features under ``kernel``; returns what a method returns."""
    target = embed.real(real)
    features = embed.synthetic(synthetic)
    with record_function("MMD"):
        losses, gradient = mmd2_and_grad(target, features.detach(), kernel, value=value)
    return losses, (features * gradient).sum()
