"""DDM class by class, as its public code computes it: the peer of benchmarks.

Written from the paper (arXiv 2412.04748): one forward pass for the real and one for the synthetic
images of each class, Grams image by image from float32 maps, a loop over images for the diversity,
autograd.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = Sequence[Tensor]  # of every layer, (n, C, h, w)
Read = Callable[[Tensor], tuple[Maps, Tensor]]  # images to maps and last features (n, D)


def moments_distance(real: Maps, synthetic: Maps) -> Tensor:
    """MM: mean and variance per channel of the maps averaged over the images."""
    losses = []
    for x, y in zip(real, synthetic, strict=True):
        x, y = x.mean(0).flatten(1), y.mean(0).flatten(1)
        spreads = x.var(1, unbiased=False), y.var(1, unbiased=False)
        losses.append((F.mse_loss(x.mean(1), y.mean(1)) + F.mse_loss(*spreads)) / 2)
    return torch.stack(losses).mean()


def correlations_distance(real: Maps, synthetic: Maps) -> Tensor:
    """CM: Grams averaged over the images."""
    losses = []
    for maps in zip(real, synthetic, strict=True):
        x, y = (layer.flatten(2) for layer in maps)
        grams = [(f @ f.transpose(1, 2)).mean(0) / f[0].numel() for f in (x, y)]
        losses.append((grams[0] - grams[1]).square().sum())
    return torch.stack(losses).mean()


def diversity(features: Tensor) -> Tensor:
    """ICD: minus the divergences from the mean of the nearest fifth."""
    count = len(features)
    nearest = max(1, min(count - 1, round(0.2 * count)))
    distances = torch.cdist(features, features).detach().fill_diagonal_(torch.inf)
    loss = features.new_zeros(())
    for own, row in zip(features, distances, strict=True):
        centre = features[row.topk(nearest, largest=False).indices].mean(0)
        loss = loss - F.kl_div(centre.log_softmax(0), own.softmax(0), reduction="sum")
    return loss


def loop_gradients(
    read: Read,
    prepare_real: Callable[[int], Tensor],
    prepare_synthetic: Callable[[int, Tensor], Tensor],
    pixels: Tensor,
    weights: tuple[float, float, float, float],
) -> tuple[Tensor, Tensor]:
    """Terms ``(C, 4)`` and pixel gradients ``(C, ipc, channels, H, W)``, class by class.

    Args:
        read: the network.
        prepare_real: maps a class to its normalised, augmented real images.
        prepare_synthetic: maps a class and its pixels to decoded, normalised, augmented images.
        pixels: ``(C, ipc, channels, H, W)``.
        weights: of MM, CM, ICD and content.
    """
    losses, gradients = [], []
    for c, class_pixels in enumerate(pixels):
        leaf = class_pixels.detach().clone().requires_grad_()
        with torch.no_grad():
            real_maps, real = read(prepare_real(c))
        maps, features = read(prepare_synthetic(c, leaf))
        parts = torch.stack(
            [
                moments_distance(real_maps, maps),
                correlations_distance(real_maps, maps),
                diversity(features),
                (real.mean(0) - features.mean(0)).square().sum(),
            ]
        ) * torch.tensor(weights)
        (gradient,) = torch.autograd.grad(parts.sum(), leaf)
        losses.append(parts.detach())
        gradients.append(gradient)
    return torch.stack(losses), torch.stack(gradients)
