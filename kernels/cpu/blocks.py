"""A sample in blocks of rows, centred block by block, so that no whole copy of it is needed."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import accumulator_dtype

# measured with torch 2.15 on one Zen 4 core, 2 MB of cache
TILE_ROWS = 512  # 512 x 512 float32 numbers are 1 MB
HALF_ROWS = 128  # rows of a block that are still worth splitting symmetric tiles for
KEPT_NUMBERS = 2**22  # centred blocks up to 16 MB are kept; beyond, centred again when used (2 %)


class Stack(NamedTuple):
    """Rows [x; y] once centred."""

    points: Tensor  # (c, N + M, D)
    squares: Tensor  # (c, N + M)


@dataclass
class Side:
    """One sample of some classes."""

    points: Tensor  # (c, n, D), as given
    bounds: list[slice]  # the rows of each block
    rows: Tensor | float  # how many count; a tensor is (c, 1, 1)
    mask: Tensor | None  # (c, n, 1), None when all rows count
    anchor: Tensor | None = None  # (c, 1, D), a row; the origin is this and the mean
    mean: Tensor | None = None  # (c, 1, D), of all rows less the anchor
    squares: Tensor | None = None  # (c, n), |row|^2 once centred
    kept: Tensor | None = None  # (c, n, D), centred
    stack: Stack | None = None  # both samples, if kept as one

    def less_anchor(self, i: int) -> Tensor:
        """Rows of block i less the anchor, in the accumulator's dtype; ignored rows are zero."""
        points = self.points[:, self.bounds[i]].to(accumulator_dtype(self.points.dtype))
        if self.anchor is not None:
            out = None if self.kept is None else self.kept[:, self.bounds[i]]
            points = torch.sub(points, self.anchor, out=out)
        # not a product: ignored rows may hold NaN
        return points if self.mask is None else points.masked_fill(self.ignored(i), 0)

    def ignored(self, i: int) -> Tensor:
        """(c, rows, 1), true for the rows of block i that do not count."""
        assert self.mask is not None
        return ~self.mask[:, self.bounds[i]]

    def block(self, i: int) -> Tensor:
        """Rows of block i, centred if the sample is."""
        if self.kept is not None:
            return self.kept[:, self.bounds[i]]
        points = self.less_anchor(i)
        return points if self.mean is None else self.centred(points, i)

    def centred(self, points: Tensor, i: int) -> Tensor:
        """Overwrite rows less the anchor."""
        assert self.mean is not None
        points -= self.mean
        return points if self.mask is None else points.masked_fill_(self.ignored(i), 0)


def row_bounds(rows: int, columns: int) -> list[slice]:
    """Cut a sample into blocks."""
    size = min(TILE_ROWS, max(HALF_ROWS, math.ceil(rows / 4)))
    # wide rows: a block stays below 16 MB, down to 16 rows
    size = min(size, max(16, KEPT_NUMBERS // columns))
    size = math.ceil(rows / math.ceil(rows / size))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def side(points: Tensor, lengths: Tensor | None) -> Side:
    """One sample, not centred yet."""
    n, columns = points.shape[1:]
    bounds = row_bounds(n, columns)
    if lengths is None:
        return Side(points, bounds, float(n), None)
    rows = lengths.to(accumulator_dtype(points.dtype))[:, None, None]
    mask = torch.arange(n, device=points.device) < lengths[:, None]
    return Side(points, bounds, rows, mask[..., None])


def centre(x: Side, y: Side, room: Tensor | None = None) -> Tensor:
    """Move the origin of both to their common mean.

    The mean is that of differences to one row, so that equal rows become exactly zero.

    Args:
        x, y: samples of the same classes.
        room: for the centred rows of both as one stack, (c or more, N + M, D), to be written over.

    Returns:
        The mean squared distance over pairs of distinct rows of both, (c, 1, 1); 1 if it is zero.
    """
    c, n = x.points.shape[:2]
    anchor = x.points[:, :1].to(accumulator_dtype(x.points.dtype))
    squares = anchor.new_empty(c, n + y.points.shape[1])
    x.anchor = y.anchor = anchor
    x.squares, y.squares = squares[:, :n], squares[:, n:]
    if room is not None:
        x.stack = y.stack = Stack(room[:c], squares)
        x.kept, y.kept = room[:c, :n], room[:c, n:]
    elif x.points.numel() + y.points.numel() <= KEPT_NUMBERS:
        x.kept, y.kept = (anchor.new_empty(sample.points.shape) for sample in (x, y))
    total = torch.zeros_like(anchor)
    for sample in (x, y):
        for i in range(len(sample.bounds)):
            total += sample.less_anchor(i).sum(-2, keepdim=True)
    count = x.rows + y.rows
    x.mean = y.mean = total / count
    spread = _measure(x) + _measure(y)
    bandwidth = (2 * spread / (count - 1)).to(anchor.dtype)
    # zero only if all rows are equal: every distance is then zero, whatever divides it
    return bandwidth.masked_fill(bandwidth == 0, 1)


def _measure(sample: Side) -> Tensor:
    """Centre what is kept of a sample; the sum of its squares, (c, 1, 1), float64."""
    assert sample.squares is not None
    for i, rows in enumerate(sample.bounds):
        points = sample.less_anchor(i) if sample.kept is None else sample.kept[:, rows]
        points = sample.centred(points, i)
        sample.squares[:, rows] = torch.linalg.vecdot(points, points)
    return sample.squares.sum(-1, dtype=torch.float64)[:, None, None]
