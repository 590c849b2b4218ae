"""Statistics of feature maps over the images of a class: what DDM calls their style.

Maps stay in their precision, sums are accumulated in float32. But a product of bfloat16 matrices
comes out rounded to bfloat16 (torch has no other on a CPU), which is 1e-3 of each number, while the
Grams of two samples of a class differ by 3 to 10 %, and less and less as they are matched: of a
difference of 0.2 % one rounded product over 10 images loses 77 %. Of many images, with a product
for each, the errors average out (2e-4 over 70, far below what their choice changes). Of few,
``exact`` adds what the rounding cut off: 0.2 % of that difference is lost.
"""

import torch
from torch import Tensor


def average_maps(maps: Tensor) -> Tensor:
    """Feature maps averaged over the images; from bfloat16, sums are rounded to it.

    Variances over a map's pixels are averages of so many such numbers that they keep 3e-4.

    Args:
        maps: ``(k, n, C, h, w)``.

    Returns:
        ``(k, C, h, w)`` float32.
    """
    if maps.dtype != torch.bfloat16:
        return maps.mean(1, dtype=torch.float32)
    # a product reads the maps in order, 4 times faster than a sum across images. torch.compile
    # replaces that of a single row by a sum, whose backward writes nothing; that of two it leaves
    classes, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2).flatten(2)
    same = 1 if maps.requires_grad else 2
    sums = torch.bmm(maps.new_ones(classes, same, count), rows)[:, 0].float() / count
    return sums.view(classes, height, width, channels).permute(0, 3, 1, 2)


def average_grams(maps: Tensor, *, exact: bool) -> Tensor:
    """Gram matrices ``F F' / (C h w)`` averaged over the images.

    Args:
        maps: ``(k, n, C, h, w)``.
        exact: see above; the error becomes 2e-6.

    Returns:
        ``(k, C, C)`` float32.
    """
    classes, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2)  # of a channels-last map contiguous
    if exact or maps.dtype != torch.bfloat16:
        products = _differentiable_products(rows.flatten(1, 3))
    else:
        rows = rows.flatten(0, 1).flatten(1, 2)  # (k n, h w, C)
        images = torch.bmm(rows.transpose(1, 2), rows).unflatten(0, (classes, count))
        products = images.sum(1, dtype=torch.float32)
    return products / (count * channels * height * width)


def _differentiable_products(rows: Tensor) -> Tensor:
    """``rows' rows`` for ``(k, N, C)``: ``(k, C, C)``, exact to 2e-6 in bfloat16.

    The gradient of both factors is taken from one, symmetrised: a single product in the layout of
    the rows, where autograd makes two and adds one transposed (forward and backward of 10 images
    of 32 px, ConvNet-3, one core: 12 instead of 45 ms).
    """
    columns = rows.detach().transpose(1, 2)
    if rows.dtype == torch.bfloat16:
        rounded = torch.bmm(columns, rows.detach())
        rest = torch.baddbmm(rounded, columns, rows, beta=-1).float()
        values = rounded.float() + rest.detach()
    else:
        rest = torch.bmm(columns, rows)
        values = rest.detach()
    both = rest + rest.transpose(1, 2)
    return values + (both - both.detach())


def spatial_mean(maps: Tensor) -> Tensor:
    """Mean of every channel of averaged maps, ``(k, C, h, w)`` to ``(k, C)``."""
    return maps.mean((2, 3))


def spatial_variance(maps: Tensor) -> Tensor:
    """Variance of every channel of averaged maps, ``(k, C, h, w)`` to ``(k, C)``."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    return centred.square().mean((2, 3))  # 15 times faster than var() on a CPU
