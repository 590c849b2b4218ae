"""A sample in blocks of rows, centred block by block, so that no whole copy of it is needed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .reference import accumulator_dtype

# measured with torch 2.15 on one Zen 4 core, 2 MB of cache
TILE_ROWS = 512  # 512 x 512 float32 numbers are 1 MB
HALF_ROWS = 128  # rows of a block that are still worth splitting symmetric tiles for
KEPT_NUMBERS = 2**22  # centred blocks up to 16 MB are kept; beyond, centred again when used (1 %)


@dataclass
class Side:
    """One sample of some classes."""

    points: Tensor  # (c, n, D), as given
    bounds: list[slice]  # the rows of each block
    rows: Tensor | float  # how many count; a tensor is (c, 1, 1)
    mask: Tensor | None  # (c, n, 1), None when all rows count
    origin: Tensor | None = None  # (c, 1, D)
    squares: Tensor | None = None  # (c, n), |row|^2 once centred
    kept: list[Tensor] | None = None

    def less(self, origin: Tensor | None, i: int) -> Tensor:
        """Rows of block i less the origin, in the accumulator's dtype; ignored rows are zero."""
        points = self.points[:, self.bounds[i]].to(accumulator_dtype(self.points.dtype))
        points = points if origin is None else points - origin
        # not a product: ignored rows may hold NaN
        return points if self.mask is None else points.masked_fill(self.ignored(i), 0)

    def ignored(self, i: int) -> Tensor:
        """(c, rows, 1), true for the rows of block i that do not count."""
        assert self.mask is not None
        return ~self.mask[:, self.bounds[i]]

    def block(self, i: int) -> Tensor:
        """Rows of block i, centred if the sample is."""
        return self.less(self.origin, i) if self.kept is None else self.kept[i]


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


def centre(x: Side, y: Side) -> Tensor:
    """Move the origin of both to their common mean.

    The mean is that of differences to one row, so that equal rows become exactly zero.

    Returns:
        The mean squared distance over pairs of distinct rows of both, (c, 1, 1); 1 if it is zero.
    """
    anchor = x.points[:, :1].to(accumulator_dtype(x.points.dtype))
    total = torch.zeros_like(anchor)
    for sample in (x, y):
        for i in range(len(sample.bounds)):
            total += sample.less(anchor, i).sum(-2, keepdim=True)
    count = x.rows + y.rows
    mean = total / count
    origin = anchor + mean
    numbers = len(x.points) * (x.points.shape[1] + y.points.shape[1]) * x.points.shape[2]
    spread = sum(_measure(sample, origin, keep=numbers <= KEPT_NUMBERS) for sample in (x, y))
    # the origin was rounded, which shows far from zero: take what it is off out of the spread
    off = (anchor.double() + mean - origin).square().sum(-1, keepdim=True)
    bandwidth = (2 * (spread - count * off) / (count - 1)).to(anchor.dtype)
    # zero only if all rows are equal: every distance is then zero, whatever divides it
    return bandwidth.masked_fill(bandwidth == 0, 1)


def _measure(sample: Side, origin: Tensor, *, keep: bool) -> Tensor:
    """Centre a sample; the sum of its squares, (c, 1, 1), float64."""
    sample.origin = origin
    sample.squares = origin.new_empty(sample.points.shape[:2])
    kept = []
    for i, rows in enumerate(sample.bounds):
        points = sample.less(origin, i)
        sample.squares[:, rows] = torch.linalg.vecdot(points, points)
        if keep:
            kept.append(points)
    sample.kept = kept if keep else None
    return sample.squares.sum(-1, dtype=torch.float64)[:, None, None]
