"""Blocks of samples against each other: which are needed, and their kernel and its slope."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import Rule
from . import gaussian_mixture
from .blocks import Side


class Tile(NamedTuple):
    """Block i of one sample against block j of the same or the other."""

    a: Side
    i: int
    b: Side
    j: int
    a_points: Tensor
    b_points: Tensor

    @property
    def on_diagonal(self) -> bool:
        """Whether it is a block against itself."""
        return self.a is self.b and self.i == self.j


def tiles_of(samples: list[Side], pulled: list[bool], value: bool) -> Iterator[Tile]:
    """The tiles that are needed; of symmetric ones the upper, and the diagonal one of a row last.

    So the diagonal tile of a block is the last to touch it. ``pulled``: whose gradients are wanted.
    """
    stacked = [(side, i) for side in range(len(samples)) for i in range(len(samples[side].bounds))]
    for at, (a, i) in enumerate(stacked):
        a_points = samples[a].block(i)
        for b, j in stacked[at + 1 :]:
            if value or pulled[a] or pulled[b]:
                yield Tile(samples[a], i, samples[b], j, a_points, samples[b].block(j))
        if value or pulled[a]:
            yield Tile(samples[a], i, samples[a], i, a_points, a_points)


def _squared_over(tile: Tile, bandwidth: Tensor | float) -> Tensor:
    """Minus the squared distances over the bandwidth, (c, rows of a, rows of b)."""
    assert tile.a.squares is not None
    assert tile.b.squares is not None
    a_halves = tile.a.squares[:, tile.a.bounds[tile.i], None] * -0.5
    b_halves = tile.b.squares[:, None, tile.b.bounds[tile.j]] * -0.5
    exponent = torch.baddbmm(b_halves, tile.a_points, tile.b_points.mT).add_(a_halves)
    # rounding can push the distance below zero
    return exponent.mul_(2 / bandwidth).clamp_max_(0)


def kernel_of(
    tile: Tile, rule: Rule, bandwidth: Tensor | None, value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``k - k(0)`` and the slope for the pairs of the tile that count, zero for others.

    The slope is ``dk / d(a.b)``, for Gaussians times half the bandwidth.
    """
    if rule.name == "polynomial":
        degree, gamma, coef0 = int(rule.parameters[0]), *rule.parameters[1:]
        base = torch.bmm(tile.a_points, tile.b_points.mT).mul_(gamma).add_(coef0)
        power = base ** (degree - 1)
        k = base.mul_(power) if value else None
        parts = k, power.mul_(degree * gamma) if slope else None
    else:
        runs = gaussian_mixture.runs_of(rule.parameters)
        # over the largest scale at once, which saves a pass
        width = runs[0].largest if bandwidth is None else runs[0].largest * bandwidth
        exponent = _squared_over(tile, width)
        k_slope = gaussian_mixture.slope(exponent, runs) if slope else None
        parts = gaussian_mixture.excess(exponent, runs) if value else None, k_slope
    for matrix in parts:
        if matrix is not None:
            _only_pairs(matrix, tile, rule)
    return parts


def _only_pairs(matrix: Tensor, tile: Tile, rule: Rule) -> None:
    # on a Gaussian's diagonal k - k(0) is zero, whatever rounding makes of the distances
    if tile.on_diagonal and (rule.unbiased or rule.name != "polynomial"):
        matrix.diagonal(dim1=-2, dim2=-1).zero_()
    if tile.a.mask is not None:
        matrix.masked_fill_(tile.a.ignored(tile.i), 0)
    if tile.b.mask is not None:
        matrix.masked_fill_(tile.b.ignored(tile.j).mT, 0)
