"""Two samples in the views of a kernel, in blocks of rows: the pairs of any two blocks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..cpu import blocks
from ..cpu.blocks import BlockedSample
from ..reference import accumulator_dtype
from .evaluate import Evaluation, Width
from .expression import Expression, Pairs, build_tree, find_pairs, list_leaves

CUDA_TILE_ROWS = 4096  # an estimate: 64 MB in float32, enough programs for a GPU
NARROW = 16  # features: up to here direct differences cost no more than a product
NEAR = 1e-3  # of |a|^2 + |b|^2: below, rounding of a product is more than 1e-4 of the distance
FEW = 0.05  # of a tile's pairs: above, all of them are computed by direct differences
NOT_SMOOTH = ("laplacian", "energy")  # at coincident points, where rounding would show


class Block(NamedTuple):
    """Block ``number`` of sample ``side``, 0 for x and 1 for y."""

    side: int
    number: int


class Views:
    """Samples (c, N, D) and (c, M, D) as an expression sees them.

    Args:
        x, y: the columns of all views, side by side.
        masks: (c, N) and (c, M), which rows count; None for all.
        expression: the kernel.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        masks: tuple[Tensor | None, Tensor | None],
        expression: Expression,
    ) -> None:
        self.root = build_tree(*expression[:4])
        self.samples: list[tuple[BlockedSample, BlockedSample]] = []
        self.widths: list[Width] = []
        self.exact: list[bool] = []
        self.pairs: list[Pairs] = []
        self.rows = tuple(_split_rows(points) for points in (x, y))
        self.columns = [
            slice(start, stop)
            for start, stop in zip(expression.bounds, expression.bounds[1:], strict=False)
        ]
        for view, columns in enumerate(self.columns):
            self._add_view(view, (x[..., columns], y[..., columns]), masks)

    def _add_view(
        self,
        view: int,
        points: tuple[Tensor, Tensor],
        masks: tuple[Tensor | None, Tensor | None],
    ) -> None:
        names = {leaf.name for leaf in list_leaves(self.root) if leaf.view == view}
        x, y = (
            BlockedSample(side, bounds, *_count_rows(side, mask))
            for side, bounds, mask in zip(points, self.rows, masks, strict=True)
        )
        (pairs,) = set(map(find_pairs, names))
        self.widths.append(blocks.centre(x, y) if pairs == "squared" else None)
        self.samples.append((x, y))
        self.pairs.append(pairs)
        self.exact.append(bool(names & set(NOT_SMOOTH)))

    def blocks(self) -> list[Block]:
        """All blocks of x, then those of y."""
        return [Block(side, i) for side in (0, 1) for i in range(len(self.rows[side]))]

    def slice_rows(self, block: Block) -> slice:
        """The rows of a block in its sample."""
        return self.rows[block.side][block.number]

    def points(self, view: int, block: Block) -> Tensor:
        """Rows of a block in one view, (c, rows, columns), centred for squared distances."""
        return self.samples[view][block.side].block(block.number)

    def evaluate(self, a: Block, b: Block) -> Evaluation:
        """The kernel on the pairs of two blocks."""
        return Evaluation(
            self.root, [self._pair(view, a, b) for view in range(len(self.samples))], self.widths
        )

    def _pair(self, view: int, a: Block, b: Block) -> Tensor:
        a_points, b_points = self.points(view, a), self.points(view, b)
        if self.pairs[view] == "dot":
            return torch.bmm(a_points, b_points.mT)
        if self.pairs[view] == "l1":
            return torch.cdist(a_points, b_points, p=1.0)
        if self.exact[view] and (a_points.is_cuda or a_points.shape[-1] <= NARROW):
            squared = _subtract(a_points, b_points)
        else:
            squares = [
                one.squares[:, self.slice_rows(block)]
                for one, block in ((self.samples[view][a.side], a), (self.samples[view][b.side], b))
                if one.squares is not None
            ]
            squared = _multiply(a_points, b_points, squares[0], squares[1])
            if self.exact[view]:
                squared = _repair_near_pairs(squared, a_points, b_points, squares)
        if a == b:
            squared.diagonal(dim1=-2, dim2=-1).zero_()
        return squared


def _split_rows(points: Tensor) -> list[slice]:
    rows, columns = points.shape[-2:]
    if points.is_cuda:
        return [slice(i, min(i + CUDA_TILE_ROWS, rows)) for i in range(0, rows, CUDA_TILE_ROWS)]
    return blocks.split_rows(rows, columns)


def _count_rows(points: Tensor, mask: Tensor | None) -> tuple[Tensor | float, Tensor | None]:
    if mask is None:
        return float(points.shape[-2]), None
    rows = mask.sum(-1).to(accumulator_dtype(points.dtype))
    return rows[:, None, None], mask[..., None]


def _multiply(a: Tensor, b: Tensor, a_squares: Tensor, b_squares: Tensor) -> Tensor:
    """|a - b|^2 from a product; rounding can push it below zero."""
    squared = torch.baddbmm(b_squares[:, None], a, b.mT, alpha=-2).add_(a_squares[..., None])
    return squared.clamp_min_(0)


def _subtract(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 from differences: exactly zero for equal rows."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _repair_near_pairs(squared: Tensor, a: Tensor, b: Tensor, squares: list[Tensor]) -> Tensor:
    """Compute distances again, from differences, where rounding would be a part of them."""
    if squared.amin() >= NEAR * (squares[0].amax() + squares[1].amax()):
        return squared  # as most tiles off the diagonal: saves two passes
    near = squared < NEAR * (squares[0][..., None] + squares[1][:, None])
    count = int(near.sum())
    if not count:
        return squared
    if count > FEW * near.numel():
        return _subtract(a, b)
    c, i, j = near.nonzero(as_tuple=True)
    squared[near] = (a[c, i] - b[c, j]).square().sum(-1)
    return squared
