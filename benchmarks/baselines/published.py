"""M3D as the published code computes it: the peer of benchmarks and the oracle of tests.

A Python loop over classes, with one forward pass for the real and one for the synthetic images of
each, the stacked ``torch.cdist`` loss and autograd, in float32. Written from the paper (arXiv
2312.15927, equation 9).
"""

from collections.abc import Callable

import torch
from torch import Tensor

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def stacked_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """MMD^2 of ``(N, D)`` and ``(M, D)`` features by the kernel matrix of all N + M rows."""
    stacked = torch.cat([synthetic, real])
    squared = torch.cdist(stacked, stacked) ** 2
    n, m = len(stacked), len(synthetic)
    bandwidth = squared.detach().sum() / (n * n - n)
    kernel = torch.stack([torch.exp(-squared / (bandwidth * scale)) for scale in SCALES]).sum(0)
    return kernel[:m, :m].mean() - 2 * kernel[:m, m:].mean() + kernel[m:, m:].mean()


def loop_gradients(
    embed: Callable[[Tensor], Tensor],
    prepare_real: Callable[[int], Tensor],
    prepare_synthetic: Callable[[int, Tensor], Tensor],
    pixels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Losses ``(C,)`` and pixel gradients ``(C, ipc, channels, H, W)``, class by class.

    Args:
        embed: maps images ``(B, channels, H, W)`` to features ``(B, D)``.
        prepare_real: maps a class to its normalised, augmented real images.
        prepare_synthetic: maps a class and its pixels to decoded, normalised, augmented images.
        pixels: ``(C, ipc, channels, H, W)``.
    """
    losses, gradients = [], []
    for c, class_pixels in enumerate(pixels):
        leaf = class_pixels.detach().clone().requires_grad_()
        with torch.no_grad():
            real = embed(prepare_real(c))
        loss = stacked_loss(real, embed(prepare_synthetic(c, leaf)))
        (gradient,) = torch.autograd.grad(loss, leaf)
        losses.append(loss.detach())
        gradients.append(gradient)
    return torch.stack(losses), torch.stack(gradients)
