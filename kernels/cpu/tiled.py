"""MMD^2 and its gradients on the CPU: the algebra of reference.py in tiles that stay in cache.

Memory beyond inputs and results does not grow with the samples.
"""

import torch
from torch import Tensor

from ..reference import Result, Rule, accumulator_dtype, given_bandwidth
from . import blocks
from .blocks import Side
from .tiles import Tile, kernel_of, tiles_of

CHUNK_NUMBERS = 2**20  # classes are taken together up to this many numbers (4 MB)
NARROW = 16  # features: below, products are three times faster the other way round


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

    def whole(self, slope: Tensor, stack: Tensor) -> None:
        """All at once, of one block; ``slope`` is (c, own rows, rows of the stack), and used up."""
        n = stack.shape[1] - slope.shape[1]
        slope[..., :n] *= self.across
        slope[..., n:] *= self.within
        slope.diagonal(n, -2, -1).sub_(slope.sum(-1))
        torch.bmm(slope.mul_(self.scale), stack, out=self.out)

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


def _share(a: Side, b: Side, k: Tensor, rule: Rule) -> Tensor:
    """What a tile adds to MMD^2, (c, 1, 1)."""
    pairs = a.rows * (b.rows - 1 if a is b and rule.unbiased else b.rows)
    total = k.sum(-1, keepdim=True).sum(-2, keepdim=True, dtype=torch.float64)
    return total * ((1 if a is b else -1) / pairs)


def _whole(
    x: Side, y: Side, rule: Rule, bandwidth: Tensor | None, value: bool, into_y: Gradient
) -> Tensor | float:
    """Fill the gradient in y from K(y, [x; y]), and what that matrix adds to MMD^2."""
    assert y.stack is not None
    points, squares = y.stack
    n = x.points.shape[1]
    both = Side(points, [slice(None)], x.rows + y.rows, None, squares=squares)
    tile = Tile(y, 0, both, 0, points[:, n:], points)
    k, slope = kernel_of(tile, rule, bandwidth, value, slope=True)
    assert slope is not None
    into_y.whole(slope, points)
    if k is None:
        return 0.0
    k.diagonal(n, -2, -1).zero_()
    return _share(y, x, k[..., :n], rule) * 2 + _share(y, y, k[..., n:], rule)


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
    x, y = samples
    if y.stack is not None and sums[1] is not None:
        total += _whole(x, y, rule, bandwidth, value is not None, sums[1])
        samples, sums = samples[:1], sums[:1]
    for tile in tiles_of(samples, [one is not None for one in sums], value is not None):
        into_a, into_b = of[id(tile.a)], of[id(tile.b)]
        slope_wanted = into_a is not None or into_b is not None
        k, slope = kernel_of(tile, rule, bandwidth, value is not None, slope_wanted)
        if k is not None:
            # a tile beside the diagonal stands for its mirror image too
            total += _share(tile.a, tile.b, k, rule) * (1 if tile.on_diagonal else 2)
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
    room: Tensor | None,
) -> None:
    """Fill the value and the gradients of a chunk of classes; ``room`` as for ``blocks.centre``."""
    width = None
    if rule.name != "polynomial":
        width = blocks.centre(samples[0], samples[1], room)
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


def _together(classes: int, x: torch.Size, y: torch.Size) -> int:
    """So many classes at a time that neither their rows nor their tiles leave the cache."""
    tile = max(blocks.row_bounds(*shape)[0].stop for shape in (x, y)) ** 2
    together = min(CHUNK_NUMBERS // (x.numel() + y.numel()), blocks.TILE_ROWS**2 // tile)
    return max(1, min(classes, together))


def _fits_whole(x: torch.Size, y: torch.Size) -> bool:
    """Whether K(y, [x; y]) can be one tile: two products instead of four."""
    rows, columns = x[0] + y[0], x[1]
    return (
        len(blocks.row_bounds(*y)) == 1
        and y[0] * rows <= blocks.TILE_ROWS**2
        and NARROW <= columns <= blocks.KEPT_NUMBERS // rows
    )


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
    sizes = x.shape[-2:], y.shape[-2:]
    step, room = _together(batch.numel(), *sizes), None
    ragged = x_lengths is not None or y_lengths is not None
    step_of_condensation = grad_y and not grad_x and not ragged and rule.name.startswith("gaussian")
    if step_of_condensation and _fits_whole(*sizes):
        # one memory for all parts stays in cache: with the one tile, 12 to 14 % of a gradient
        room = x.new_empty(step, sizes[0][0] + sizes[1][0], sizes[0][1], dtype=dtype)
    for start in range(0, batch.numel(), step):
        part = slice(start, start + step)
        a, b, *outs = (None if rows is None else rows[part] for rows in matrices)
        width, a_lengths, b_lengths, out = (None if one is None else one[part] for one in numbers)
        assert a is not None
        assert b is not None
        samples = [blocks.side(a, a_lengths), blocks.side(b, b_lengths)]
        _chunk(samples, rule, width, out, outs, room)
    return Result(values, *gradients)
