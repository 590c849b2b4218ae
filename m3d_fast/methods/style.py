"""Statistics of feature maps over the images of a class: what DDM calls their style."""

import torch
from torch import Tensor


def average_maps(maps: Tensor) -> Tensor:
    """Feature maps averaged over the images, ``(k, n, C, h, w)`` to ``(k, C, h, w)`` float32."""
    return maps.mean(1, dtype=torch.float32)


def average_grams(maps: Tensor) -> Tensor:
    """Gram matrices ``F F' / (C h w)`` averaged over the images.

    Maps stay in their precision; sums are float32. A product of bfloat16 matrices is rounded to
    bfloat16 (torch has no other on a CPU), relative error 1e-3, while the Grams of two samples of
    a class differ by 3 to 10 %, and less and less as they are matched. So what the rounding cut
    off is computed by a second product, which is differentiated instead of the first; the error
    becomes 2e-6, at two thirds of the time of a float32 product and without float32 maps.

    Args:
        maps: ``(k, n, C, h, w)``.

    Returns:
        ``(k, C, C)`` float32.
    """
    _, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2).flatten(1, 3)  # of a channels-last map a view
    columns = rows.transpose(1, 2)
    if maps.dtype == torch.bfloat16:
        rounded = torch.bmm(columns, rows).detach()
        products = rounded.float() + torch.baddbmm(rounded, columns, rows, beta=-1).float()
    else:
        products = torch.bmm(columns, rows)
    return products / (count * channels * height * width)


def spatial_mean(maps: Tensor) -> Tensor:
    """Mean of every channel of averaged maps, ``(k, C, h, w)`` to ``(k, C)``."""
    return maps.mean((2, 3))


def spatial_variance(maps: Tensor) -> Tensor:
    """Variance of every channel of averaged maps, ``(k, C, h, w)`` to ``(k, C)``."""
    return maps.flatten(2).var(2, unbiased=False)
