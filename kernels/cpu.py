"""MMD^2 and its gradients on the CPU: the algebra of reference.py in tiles that stay in cache.

Memory beyond inputs and results does not grow with the samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import blocks, mixture
from .blocks import Side
from .reference import Result, Rule, accumulator_dtype, given_bandwidth

CHUNK_NUMBERS = 2**20  # classes are taken together up to this many numbers (4 MB)
NARROW = 16  # features: below, products are three times faster the other way round


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


def tiles_of(samples: list[Side], grads: list["Gradient | None"], value: bool) -> Iterator[Tile]:
    """The tiles that are needed; of symmetric ones the upper, and the diagonal one of a row last.

    So the diagonal tile of a block is the last to touch it.
    """
    stacked = [(side, i) for side in range(2) for i in range(len(samples[side].bounds))]
    for at, (a, i) in enumerate(stacked):
        a_points = samples[a].block(i)
        for b, j in stacked[at + 1 :]:
            if value or grads[a] is not None or grads[b] is not None:
                yield Tile(samples[a], i, samples[b], j, a_points, samples[b].block(j))
        if value or grads[a] is not None:
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
        runs = mixture.runs_of(rule.parameters)
        # over the largest scale at once, which saves a pass
        width = runs[0].largest if bandwidth is None else runs[0].largest * bandwidth
        exponent = _squared_over(tile, width)
        k_slope = mixture.slope(exponent, runs) if slope else None
        parts = mixture.excess(exponent, runs) if value else None, k_slope
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


class Gradient:
    """The gradient in the rows of one sample, summed tile by tile.

    Tiles are summed with whole factors, and the sum is scaled: pushes and pulls can all but cancel,
    and would leave over what rounding each factor did.
    """

    def __init__(
        self, out: Tensor, own: Side, other: Side, rule: Rule, bandwidth: Tensor | None
    ) -> None:
        within = own.rows - 1 if rule.unbiased else own.rows
        self.out, self.own = out, own  # out is (c, n, D), to be filled
        self.within, self.across = other.rows, -1 * within
        self.scale = 2 / (own.rows * within * other.rows)
        self.differences = rule.name != "polynomial"
        if self.differences:
            self.scale = self.scale * 2 if bandwidth is None else self.scale * 2 / bandwidth
        self.pulls = out.new_zeros(out.shape[:2])  # row sums of the slopes
        self.begun: set[int] = set()

    def add(self, i: int, slope: Tensor, points: Tensor, source: Side) -> None:
        """What other rows give to block i; ``slope`` is (c, rows of i, other rows)."""
        factor = self.within if source is self.own else self.across
        if isinstance(factor, Tensor):
            slope, factor = slope * factor, 1.0
        self._accumulate(i, slope, points, factor)
        self.pulls[:, self.own.bounds[i]] += factor * slope.sum(-1)

    def close(self, i: int, slope: Tensor, points: Tensor) -> None:
        """Add what the rows of block i give to each other, the last there is; uses up the slope."""
        slope *= self.within
        if self.differences:
            # k depends on a - b alone: a row is pulled by differences, so less the row sums
            pulls = self.pulls[:, self.own.bounds[i]] + slope.sum(-1)
            slope.diagonal(dim1=-2, dim2=-1).sub_(pulls)
        self._accumulate(i, slope, points, 1.0)
        self.out[:, self.own.bounds[i]] *= self.scale

    def _accumulate(self, i: int, slope: Tensor, points: Tensor, factor: float) -> None:
        out = self.out[:, self.own.bounds[i]]
        # at first there is nothing to add to, and unwritten memory may hold NaN
        beta = 1 if i in self.begun else 0
        self.begun.add(i)
        if points.shape[-1] >= NARROW:
            torch.baddbmm(out, slope, points, beta=beta, alpha=factor, out=out)
            return
        pulled = torch.bmm(points.mT, slope.mT).mul_(factor).mT
        out.add_(pulled) if beta else out.copy_(pulled)


def _quadratic(
    samples: list[Side],
    rule: Rule,
    bandwidth: Tensor | None,
    value: Tensor | None,
    gradients: list[Tensor | None],
) -> None:
    """Fill the value and the gradients of a chunk of classes, tile by tile."""
    sums = [
        None if out is None else Gradient(out, own, other, rule, bandwidth)
        for out, own, other in zip(gradients, samples, reversed(samples), strict=True)
    ]
    of = dict(zip(map(id, samples), sums, strict=True))
    total = torch.zeros(len(samples[0].points), 1, 1, dtype=torch.float64)
    for tile in tiles_of(samples, sums, value is not None):
        into_a, into_b = of[id(tile.a)], of[id(tile.b)]
        slope_wanted = into_a is not None or into_b is not None
        k, slope = kernel_of(tile, rule, bandwidth, value is not None, slope_wanted)
        if k is not None:
            total += _share(tile, k, rule)
        if slope is None:
            continue
        if tile.on_diagonal and into_a is not None:
            into_a.close(tile.i, slope, tile.a_points)
            continue
        if into_a is not None:
            into_a.add(tile.i, slope, tile.b_points, tile.b)
        if into_b is not None:
            into_b.add(tile.j, slope.mT, tile.a_points, tile.a)
    if value is not None:
        value.copy_(total[:, 0, 0])


def _share(tile: Tile, k: Tensor, rule: Rule) -> Tensor:
    """What a tile and its mirror image add to MMD^2, (c, 1, 1)."""
    same = tile.a is tile.b
    pairs = tile.a.rows * (tile.b.rows - 1 if same and rule.unbiased else tile.b.rows)
    weight = (1 if tile.on_diagonal else 2) * (1 if same else -1) / pairs
    return k.sum(-1, keepdim=True).sum(-2, keepdim=True, dtype=torch.float64) * weight


def _linear(
    samples: list[Side], unbiased: bool, value: Tensor | None, gradients: list[Tensor | None]
) -> None:
    """|mean x - mean y|^2; if unbiased, less the variances of the two means."""
    means = [
        torch.stack([side.block(i).sum(-2, keepdim=True) for i in range(len(side.bounds))]).sum(0)
        / side.rows
        for side in samples
    ]
    difference = means[0] - means[1]
    total = difference.square().sum(-1, keepdim=True, dtype=torch.float64)
    for side, mean, sign, out in zip(samples, means, (2, -2), gradients, strict=True):
        for i, rows in enumerate(side.bounds):
            gradient = sign * difference / side.rows
            if unbiased:
                pairs = side.rows * (side.rows - 1)
                rest = _without_ignored(side.block(i) - mean, side, i)
                squares = rest.square().sum(-1, keepdim=True)
                total -= squares.sum(-2, keepdim=True, dtype=torch.float64) / pairs
                gradient = gradient - 2 * rest / pairs
            if out is not None:
                out[:, rows] = gradient
                _without_ignored(out[:, rows], side, i)
    if value is not None:
        value.copy_(total[:, 0, 0])


def _without_ignored(points: Tensor, side: Side, i: int) -> Tensor:
    return points if side.mask is None else points.masked_fill_(side.ignored(i), 0)


def _chunk(
    samples: list[Side],
    rule: Rule,
    bandwidth: Tensor | None,
    value: Tensor | None,
    gradients: list[Tensor | None],
) -> None:
    """Fill the value and the gradients of a chunk of classes."""
    width = None
    if rule.name != "polynomial":
        width = blocks.centre(*samples)
    if rule.name == "linear":
        _linear(samples, rule.unbiased, value, gradients)
        return
    if rule.name == "gaussian" and width is not None:
        width = None if bandwidth is None else given_bandwidth(bandwidth, width.dtype)
    _quadratic(samples, rule, width, value, gradients)


def _flat(tensor: Tensor | None, batch: torch.Size, own: int) -> Tensor | None:
    """One batch dimension in front of the ``own`` last; a scalar counts for every element."""
    if tensor is None:
        return None
    rest = tensor.shape[tensor.ndim - own :]
    return tensor.expand(batch + rest).reshape(batch.numel(), *rest)


def _chunks(classes: int, x: torch.Size, y: torch.Size) -> Iterator[slice]:
    """So many classes together that neither their rows nor their tiles leave the cache."""
    tile = max(blocks.row_bounds(*shape)[0].stop for shape in (x, y)) ** 2
    together = min(CHUNK_NUMBERS // (x.numel() + y.numel()), blocks.TILE_ROWS**2 // tile)
    for start in range(0, classes, max(1, together)):
        yield slice(start, start + max(1, together))


def mmd2(
    x: Tensor,
    y: Tensor,
    rule: Rule,
    *,
    bandwidth: Tensor | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    value: bool = True,
    grad_x: bool = False,
    grad_y: bool = False,
) -> Result:
    """MMD^2 per batch element and its gradients, as ``reference.mmd2``.

    K(x, x) is skipped unless the value or the gradient in x needs it, and K(y, y) likewise.
    """
    batch, dtype = x.shape[:-2], accumulator_dtype(x.dtype)
    values = x.new_empty(batch, dtype=dtype) if value else None
    gradients = [
        points.new_empty(points.shape, dtype=dtype) if wanted else None
        for points, wanted in ((x, grad_x), (y, grad_y))
    ]
    matrices = [_flat(tensor, batch, 2) for tensor in (x, y, *gradients)]
    numbers = [_flat(tensor, batch, 0) for tensor in (bandwidth, x_lengths, y_lengths, values)]
    for part in _chunks(batch.numel(), *(points.shape[-2:] for points in (x, y))):
        a, b, *outs = (None if rows is None else rows[part] for rows in matrices)
        width, a_lengths, b_lengths, out = (None if one is None else one[part] for one in numbers)
        assert a is not None
        assert b is not None
        samples = [blocks.side(a, a_lengths), blocks.side(b, b_lengths)]
        _chunk(samples, rule, width, out, outs)
    return Result(values, *gradients)
