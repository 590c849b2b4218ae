"""Two-sample tests for many rows: the wild bootstrap and blocks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..combinations import Kernel
from ..functional import mmd2
from ..kernel_functions import M3D_KERNEL
from ..precision import full_float32
from ..reference import accumulator_dtype
from .pair_sums import Tiles
from .permutation import check_count, check_test


class BootstrapTest(NamedTuple):
    """Result of ``wild_bootstrap_test``."""

    statistic: Tensor  # (), the biased MMD^2
    p_value: float
    null: Tensor  # (bootstraps,), with random signs


class BlockTest(NamedTuple):
    """Result of ``block_test``."""

    statistic: Tensor  # (), the mean over blocks of the unbiased MMD^2
    p_value: float
    values: Tensor  # (blocks,)


def wild_bootstrap_test(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    bootstraps: int = 1000,
    generator: torch.Generator | None = None,
) -> BootstrapTest:
    """Test whether ``x`` and ``y`` come from one distribution, by random signs of pairs of rows.

    ``sum_ij e_i e_j h(i, j) / n^2`` with ``h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) -
    k(y_i, x_j)`` and signs e (Fromont et al. 2012; Chwialkowski et al. 2014; MMDAgg, arXiv
    2110.15073, section 3.2). A sign of -1 exchanges x_i and y_i, so the p-value is exact. One
    product of a tile with the signs serves all bootstraps, and 2 n signs are drawn instead of
    permutations sorted.

    Args:
        x: ``(N, D)``, any floating dtype.
        y: ``(N, D)``, as many rows as ``x``, same dtype and device.
        kernel: as in ``mmd2``.
        bootstraps: number of random vectors of signs.
        generator: draws them, on its own device; None means torch's default of that of ``x``.

    Returns:
        ``(statistic, p_value, null)``.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """
    check_test(x, y, [kernel])
    check_count("bootstraps", bootstraps)
    if len(x) != len(y):
        raise ValueError(f"x, y: expected as many rows in each, got {len(x)} and {len(y)}")
    n, dtype = len(x), accumulator_dtype(x.dtype)
    device = x.device if generator is None else generator.device
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_float32(x.device):
        signs = torch.ones(1 + bootstraps, n, dtype=torch.int8, device=device)
        signs[1:].random_(0, 2, generator=generator).mul_(2).sub_(1)
        signs = torch.cat([signs, -signs], 1).to(x.device)
        sums = torch.zeros(1 + bootstraps, dtype=torch.float64, device=x.device)
        for (k,), a, b in Tiles(x, y, [kernel]):
            in_a, in_b = (signs[:, rows].T.to(k.dtype) for rows in (a, b))
            sums += (1 if a == b else 2) * (in_a * (k @ in_b)).sum(0, dtype=torch.float64)
        values = sums / n**2
        slack = 1e-6 * values.abs().mean()
        larger = int((values >= values[0] - slack).sum())
    return BootstrapTest(values[0].to(dtype), larger / (1 + bootstraps), values[1:].to(dtype))


def block_test(
    x: Tensor, y: Tensor, kernel: Kernel = M3D_KERNEL, *, block_rows: int | None = None
) -> BlockTest:
    """Test whether ``x`` and ``y`` come from one distribution, in time N times the block's rows.

    The mean of the unbiased MMD^2 of blocks of rows, which are independent: for many blocks it is
    normal (B-test, Zaremba et al. 2013, arXiv 1307.1954). Rows beyond the last full block are
    left out, and so are those that the larger sample has more. The rows must be in random order.

    Args:
        x: ``(N, D)``, any floating dtype.
        y: ``(M, D)``, same dtype and device.
        kernel: as in ``mmd2``; a mean bandwidth is that of each block.
        block_rows: rows of each sample in a block, at least 2; None means the root of the smaller
            number of rows.

    Returns:
        ``(statistic, p_value, values)``. The p-value is that of the normal distribution: with few
        blocks it is rough.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """
    check_test(x, y, [kernel])
    rows = min(len(x), len(y))
    if block_rows is None:
        block_rows = max(2, math.isqrt(rows))
    check_count("block_rows", block_rows, 2)
    blocks = rows // block_rows
    if blocks < 2:
        raise ValueError(
            f"block_rows: expected at most {rows // 2}, half the rows of a sample, got {block_rows}"
        )
    with torch.no_grad():
        a, b = (side[: blocks * block_rows].view(blocks, block_rows, -1) for side in (x, y))
        values = mmd2(a, b, kernel, estimator="unbiased")
        deviation = values.double().std() / math.sqrt(blocks)
        score = values.double().mean() / deviation
    p_value = 0.5 * math.erfc(score.item() / math.sqrt(2)) if deviation > 0 else 1.0
    return BlockTest(values.mean(), p_value, values)
