"""Tiles of the kernel matrix: which are needed, and the kernel and its slope in each."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import Rule
from . import blocks, gaussian_mixture
from .blocks import BlockedSample


class Tile(NamedTuple):
    """Some rows of sample a against some of sample b, which may be the same sample."""

    a: BlockedSample
    a_rows: slice
    b: BlockedSample
    b_rows: slice
    a_points: Tensor
    b_points: Tensor

    @property
    def on_diagonal(self) -> bool:
        """Whether it is rows against themselves."""
        return self.a is self.b and self.a_rows == self.b_rows


def iterate_tiles(
    samples: list[BlockedSample], differentiated: list[bool], value: bool
) -> Iterator[Tile]:
    """Yield the tiles that are needed: the upper of symmetric ones, the diagonal one last in a row.

    The diagonal tile of a block is therefore the last that contains the block.

    Args:
        samples: x and y.
        differentiated: whether the gradient in x and in y is requested.
        value: whether the value is requested.
    """
    stacked = [(side, i) for side in range(len(samples)) for i in range(len(samples[side].bounds))]
    for at, (a, i) in enumerate(stacked):
        a_points, rows = samples[a].block(i), samples[a].bounds[i]
        for b, j in stacked[at + 1 :]:
            if value or differentiated[a] or differentiated[b]:
                b_points, b_rows = samples[b].block(j), samples[b].bounds[j]
                yield Tile(samples[a], rows, samples[b], b_rows, a_points, b_points)
        if value or differentiated[a]:
            yield Tile(samples[a], rows, samples[a], rows, a_points, a_points)


def halve(tile: Tile) -> Iterator[Tile]:
    """Yield the upper tiles of a wide one on the diagonal, down to 128 rows; others as they are."""
    points, rows = tile.a_points, tile.a_rows
    count, (half, multiple) = points.shape[1], blocks.choose_half(tile.a.bfloat16)
    if not tile.on_diagonal or count <= half or points.shape[2] < blocks.WIDE:
        yield tile
        return
    middle = math.ceil(count / 2 / multiple) * multiple
    first = slice(rows.start, rows.start + middle), points[:, :middle]
    second = slice(rows.start + middle, rows.start + count), points[:, middle:]
    for (a, a_points), (b, b_points) in ((first, second), (first, first), (second, second)):
        yield from halve(Tile(tile.a, a, tile.a, b, a_points, b_points))


def _compute_exponents(tile: Tile, bandwidth: Tensor | float) -> Tensor:
    """Minus the squared distances divided by the bandwidth, (c, rows of a, rows of b)."""
    assert tile.a.squares is not None
    assert tile.b.squares is not None
    a_halves = tile.a.squares[:, tile.a_rows, None] * -0.5
    b_halves = tile.b.squares[:, None, tile.b_rows] * -0.5
    exponent = torch.baddbmm(b_halves, tile.a_points, tile.b_points.mT).add_(a_halves)
    # rounding can push the distance below zero
    return exponent.mul_(2 / bandwidth).clamp_max_(0)


def evaluate_kernel(
    tile: Tile, rule: Rule, bandwidth: Tensor | None, value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Compute ``k - k(0)`` and the slope for the pairs of a tile that count, zero for the others.

    The slope is ``dk / d(a.b)``, for Gaussians times half the bandwidth.
    """
    if rule.name == "polynomial":
        degree, gamma, coef0 = int(rule.parameters[0]), *rule.parameters[1:]
        constant = tile.a_points.new_full((1, 1, 1), coef0)
        base = torch.baddbmm(constant, tile.a_points, tile.b_points.mT, alpha=gamma)
        power = base ** (degree - 1)
        k = base.mul_(power) if value else None
        k_slope = power.mul_(degree * gamma) if slope else None
    else:
        runs = gaussian_mixture.group_scales(rule.parameters)
        # divide by the largest scale here, which saves a pass
        width = runs[0].largest if bandwidth is None else runs[0].largest * bandwidth
        exponent = _compute_exponents(tile, width)
        k_slope = gaussian_mixture.sum_slopes(exponent, runs) if slope else None
        k = gaussian_mixture.sum_excess(exponent, runs) if value else None
    for matrix in (k, k_slope):
        if matrix is not None:
            _zero_ignored_pairs(matrix, tile, rule)
    return k, k_slope


def _zero_ignored_pairs(matrix: Tensor, tile: Tile, rule: Rule) -> None:
    # on a Gaussian's diagonal k - k(0) is zero, whatever rounding makes of the distances
    if tile.on_diagonal and (rule.unbiased or rule.name != "polynomial"):
        matrix.diagonal(dim1=-2, dim2=-1).zero_()
    if tile.a.mask is not None:
        matrix.masked_fill_(tile.a.ignored_rows(tile.a_rows), 0)
    if tile.b.mask is not None:
        matrix.masked_fill_(tile.b.ignored_rows(tile.b_rows).mT, 0)
