"""Statistics of feature maps over the images of a class: what DDM calls their style.

Maps stay in their precision, sums are accumulated in float32. But a product of bfloat16 matrices
comes out rounded to bfloat16 (torch has no other on a CPU), which is 1e-3 of each number, while the
Grams of two samples of a class differ by 3 to 10 %, and less and less as they are matched: of a
difference of 0.2 % one rounded product over 10 images loses 77 %. Of many images, with a product
for every four, the errors average out (5e-4 over 40 and 3e-4 over 128, while samples of so many
differ by 2 to 7 %: Fashion-MNIST, random networks). Of few, ``exact`` adds what the rounding cut
off: 0.2 % of that difference is lost.
"""

import math

import torch
from torch import Tensor

TOGETHER = 4  # images of one product, which takes 4/5 of the time of one for each (CPU)
MANY = 32  # images, whose products need not be exact


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
    # replaces a batch of products of a single row by sums, whose backward writes nothing; that of
    # two rows it leaves, in twice the time, and a single product
    classes, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2).flatten(2)
    if classes == 1 and not maps.requires_grad:
        sums = maps.new_ones(1, count) @ rows[0]
    else:
        same = 1 if maps.requires_grad else 2
        sums = torch.bmm(maps.new_ones(classes, same, count), rows)[:, 0]
    sums = sums.float() / count
    return sums.view(classes, height, width, channels).permute(0, 3, 1, 2)


def average_grams(maps: Tensor, *, exact: bool) -> Tensor:
    """Gram matrices ``F F' / (C h w)`` averaged over the images.

    Args:
        maps: ``(k, n, C, h, w)``.
        exact: see above; the error becomes 2e-6.

    Returns:
        ``(k, C, C)`` float32.
    """
    _, count, channels, height, width = maps.shape
    rows = maps.permute(0, 1, 3, 4, 2)  # of a channels-last map contiguous
    if maps.dtype != torch.bfloat16 or exact:
        products = _sum_products(rows.flatten(1, 3)[:, None], exact=exact)
    else:
        # powers of two: numbers that all images share are rounded alike, whatever their count
        together = math.gcd(count, TOGETHER)
        grouped = rows.unflatten(1, (-1, together)).flatten(2, 4)
        products = _sum_products(grouped, exact=False)
    return products / (count * channels * height * width)


def _sum_products(rows: Tensor, *, exact: bool) -> Tensor:
    """The sum over g of ``rows' rows`` for ``(k, g, N, C)``: ``(k, C, C)`` float32.

    The gradient of both factors is taken from one, symmetrised: a single product in the layout of
    the rows, where autograd makes two and adds one transposed (forward and backward of 10 images
    of 32 px, ConvNet-3, one core: 12 instead of 45 ms).

    Args:
        rows: any dtype.
        exact: for bfloat16 whether to add what rounding cuts off.
    """
    classes, flat = len(rows), rows.flatten(0, 1)
    columns = flat.detach().transpose(1, 2)
    if exact and rows.dtype == torch.bfloat16:
        rounded = torch.bmm(columns, flat.detach())
        varying = torch.baddbmm(rounded, columns, flat, beta=-1).float()
        values = rounded.float() + varying.detach()
    else:
        varying = torch.bmm(columns, flat)
        values = varying.detach()
    dtype = torch.float32 if rows.dtype == torch.bfloat16 else rows.dtype
    varying, values = (
        part.unflatten(0, (classes, -1)).sum(1, dtype=dtype) for part in (varying, values)
    )
    both = varying + varying.transpose(1, 2)
    return values + (both - both.detach())


def spatial_moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, ``(k, C)``, of every channel of averaged maps ``(k, C, h, w)``."""
    mean = maps.mean((2, 3))
    # the sum of the differences is zero, and with it the variance's gradient in the mean
    centred = maps - mean.detach()[..., None, None]
    return mean, centred.square().mean((2, 3))  # 15 times faster than var() on a CPU
