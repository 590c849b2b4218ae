"""Weighted MMD^2 and its gradients for any kernel function, tile by tile, on any device."""

import torch
from torch import Tensor

from ..reference import Result, accumulator_dtype
from .expression import Expression
from .views import Block, Views

CHUNK_PAIRS = 2**18  # batch elements are computed together up to this many pairs
CUDA_CHUNK_PAIRS = 2**25
SIGNED_NUMBERS = 2**24  # one per pair and feature, which a GPU writes before it sums them: 64 MB


def normalise(weights: Tensor) -> Tensor:
    """Divide weights, (..., n), by their sum; NaN where one is negative or all are zero."""
    total = weights.sum(-1, keepdim=True)
    usable = (weights >= 0).all(-1, keepdim=True) & (total > 0)
    return weights / total.masked_fill(~usable, torch.nan)


def mmd2(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    expression: Expression,
    *,
    unbiased: bool,
    value: bool = True,
    grad_x: bool = False,
    grad_y: bool = False,
) -> Result:
    """Compute ``sum_k (u_k' K_xx u_k + v_k' K_yy v_k - 2 u_k' K_xy v_k)`` and its gradients.

    Args:
        x: (..., N, D), the views of the kernel side by side.
        y: (..., M, D).
        x_weights: (..., K, N), not negative, with any sum, the same for x and y; None for 1 / N.
            Rows that are zero in all of them are ignored.
        y_weights: (..., K, M).
        expression: the kernel.
        unbiased: leave pairs of a row with itself out, and divide by the weight of the others.
    """
    batch, dtype = x.shape[:-2], accumulator_dtype(x.dtype)
    values = x.new_empty(batch, dtype=dtype) if value else None
    gradients = [
        points.new_zeros(points.shape, dtype=dtype) if wanted else None
        for points, wanted in ((x, grad_x), (y, grad_y))
    ]
    flat: list[Tensor | None] = [
        None if one is None else one.reshape(batch.numel(), *one.shape[-2:])
        for one in (x, y, x_weights, y_weights, *gradients)
    ]
    flat_values = None if values is None else values.view(-1)
    pairs = (x.shape[-2] + y.shape[-2]) ** 2
    step = max(1, (CUDA_CHUNK_PAIRS if x.is_cuda else CHUNK_PAIRS) // pairs)
    for start in range(0, batch.numel(), step):
        part = slice(start, start + step)
        a, b, u, v, out_x, out_y = (None if one is None else one[part] for one in flat)
        assert a is not None
        assert b is not None
        chunk = _Chunk(a, b, u, v, expression, unbiased, [out_x, out_y])
        total = chunk.run(value)
        if flat_values is not None:
            flat_values[part] = total
    return Result(values, *gradients)


class _Chunk:
    """Some batch elements: the weights of their rows, and the sums over their tiles."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        expression: Expression,
        unbiased: bool,
        outs: list[Tensor | None],
    ) -> None:
        self.unbiased, self.outs = unbiased, outs
        given = (x_weights, y_weights)
        masks = [None if one is None else (one != 0).any(-2) for one in given]
        self.views = Views(x, y, (masks[0], masks[1]), expression)
        dtype = accumulator_dtype(x.dtype)
        self.across = [
            points.new_full((len(points), 1, points.shape[1]), 1 / points.shape[1], dtype=dtype)
            if one is None
            else one.to(dtype)
            for one, points in zip(given, (x, y), strict=True)
        ]
        self.within = [_drop_own_pairs(one) if unbiased else one for one in self.across]
        # of the slopes of each view: what its own rows are multiplied by in the end
        self.row_sums = [
            [torch.zeros_like(one[:, 0]) for one in self.across] for _ in self.views.columns
        ]

    def run(self, value: bool) -> Tensor:
        """Add all tiles to the gradients; return the values, (c,) float64, if requested."""
        total = self.across[0].new_zeros(len(self.across[0]), dtype=torch.float64)
        stacked = self.views.blocks()
        for at, a in enumerate(stacked):
            for b in stacked[at:]:
                if value or self.outs[a.side] is not None or self.outs[b.side] is not None:
                    total += self._add_tile(a, b, value)
        self._subtract_own_rows()
        return total

    def _add_tile(self, a: Block, b: Block, value: bool) -> Tensor | float:
        weights = self.within if a.side == b.side else self.across
        u, v = (weights[block.side][..., self.views.slice_rows(block)] for block in (a, b))
        # a tile off the diagonal also stands for its mirror image
        sign = (1.0 if a.side == b.side else -1.0) * (1.0 if a == b else 2.0)
        evaluation, total = self.views.evaluate(a, b), torch.zeros(())
        if value:
            excess = evaluation.excess()
            if a == b and self.unbiased:
                excess = excess.clone()
                excess.diagonal(dim1=-2, dim2=-1).zero_()
            sums = torch.bmm(u, excess).mul_(v).sum(-1, dtype=torch.float64).sum(-1)
            total = sums * sign
        if self.outs[a.side] is not None or self.outs[b.side] is not None:
            self._add_gradients(a, b, evaluation.slopes(), torch.bmm(u.mT, v))
        return total

    def _add_gradients(self, a: Block, b: Block, slopes: list[Tensor], pairs: Tensor) -> None:
        """Add the terms of rows of b in those of a, and of a in b; ``pairs`` weighs each pair."""
        pairs = pairs.mul_(2.0 if a.side == b.side else -2.0)
        if a == b and self.unbiased:
            pairs.diagonal(dim1=-2, dim2=-1).zero_()
        for view, slope in enumerate(slopes):
            weighed = slope * pairs
            self._add_terms(view, a, weighed, b)
            if a != b:
                self._add_terms(view, b, weighed.mT, a)

    def _add_terms(self, view: int, own: Block, slope: Tensor, other: Block) -> None:
        out = self.outs[own.side]
        if out is None:
            return
        rows, points = self.views.slice_rows(own), self.views.points(view, other)
        if self.views.pairs[view] == "l1":
            own_points = self.views.points(view, own)
            _add_signs(out[:, rows, self.views.columns[view]], slope, own_points, points)
            return
        out[:, rows, self.views.columns[view]] += torch.bmm(slope, points)
        self.row_sums[view][own.side][:, rows] += slope.sum(-1)

    def _subtract_own_rows(self) -> None:
        """A function of |a - b|^2 has a sum of differences as its gradient."""
        for view, columns in enumerate(self.views.columns):
            if self.views.pairs[view] != "squared":
                continue
            for own in self.views.blocks():
                out, rows = self.outs[own.side], self.views.slice_rows(own)
                if out is not None:
                    sums = self.row_sums[view][own.side][:, rows, None]
                    out[:, rows, columns] -= sums * self.views.points(view, own)


def _add_signs(out: Tensor, slope: Tensor, own: Tensor, other: Tensor) -> None:
    """Add ``sum_j slope_ij sign(own_i - other_j)`` to ``out``, (c, rows of own, columns)."""
    own, step = own.contiguous(), max(1, SIGNED_NUMBERS // own.numel())
    for part, points in zip(slope.split(step, 2), other.split(step, 1), strict=True):
        part = part.contiguous()
        # the distances, its last argument, do not enter this norm's gradient
        out += torch.ops.aten._cdist_backward(part, own, points.contiguous(), 1.0, part)


def _drop_own_pairs(weights: Tensor) -> Tensor:
    """Scale weights, (c, K, n), so that the pairs of distinct rows have the weight of all pairs."""
    total = weights.sum(-1, keepdim=True)
    shares = weights / total
    rest = 1 - shares.square().sum(-1, keepdim=True)
    # a class without rows stays at zero; a single row has no pair
    rest = rest.masked_fill(rest <= 0, torch.nan)
    return torch.where(total == 0, 0.0, weights / rest.sqrt())
