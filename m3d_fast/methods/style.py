"""Statistics of feature maps over the images of a class: what DDM calls their style.

Maps stay in their precision, sums are accumulated in float32. But a product of bfloat16 matrices
comes out rounded to bfloat16 (torch has no other on a CPU), which is 1e-3 of each number, while the
Grams of two samples of a class differ by 3 to 10 %, and less and less as they are matched. Over
many images, as many products, the errors average out: of 256 they are 1e-4, a fiftieth of what the
choice of the images changes. Over few, ``exact`` adds what the rounding cut off.
"""

import torch
from torch import Tensor


def average_maps(maps: Tensor, *, exact: bool) -> Tensor:
    """Feature maps averaged over the images.

    Args:
        maps: ``(k, n, C, h, w)``.
        exact: see above.

    Returns:
        ``(k, C, h, w)`` float32.
    """
    if exact or maps.dtype != torch.bfloat16:
        return maps.mean(1, dtype=torch.float32)
    # a product reads the maps in order, 4 times faster than a sum across images
    classes, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2).flatten(2)
    sums = torch.bmm(maps.new_ones(classes, 1, count), rows).float() / count
    return sums.view(classes, height, width, channels).permute(0, 3, 1, 2)


def average_grams(maps: Tensor, *, exact: bool) -> Tensor:
    """Gram matrices ``F F' / (C h w)`` averaged over the images.

    Args:
        maps: ``(k, n, C, h, w)``.
        exact: see above; the error becomes 2e-6. The second product, of what the rounding of the
            first cut off, is the one that is differentiated.

    Returns:
        ``(k, C, C)`` float32.
    """
    classes, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2)  # of a channels-last map contiguous
    if maps.dtype != torch.bfloat16 or exact:
        rows = rows.flatten(1, 3)  # (k, n h w, C)
        products = torch.bmm(rows.transpose(1, 2), rows)
        if maps.dtype == torch.bfloat16:
            rounded = products.detach()
            rest = torch.baddbmm(rounded, rows.transpose(1, 2), rows, beta=-1)
            products = rounded.float() + rest.float()
    else:
        rows = rows.flatten(0, 1).flatten(1, 2)  # (k n, h w, C)
        images = torch.bmm(rows.transpose(1, 2), rows).unflatten(0, (classes, count))
        products = images.sum(1, dtype=torch.float32)
    return products / (count * channels * height * width)


def spatial_mean(maps: Tensor) -> Tensor:
    """Mean of every channel of averaged maps, ``(k, C, h, w)`` to ``(k, C)``."""
    return maps.mean((2, 3))


def spatial_variance(maps: Tensor) -> Tensor:
    """Variance of every channel of averaged maps, ``(k, C, h, w)`` to ``(k, C)``."""
    return maps.flatten(2).var(2, unbiased=False)
