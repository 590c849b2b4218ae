"""Sums of kernels over pairs of rows for many divisions of the rows, in one pass over the pairs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..combinations import Kernel, Sum
from ..general.evaluate import at_zero
from ..general.expression import encode
from ..general.views import Block, Views


class PairSums:
    """Sums of k over pairs of rows: within the indicated sample, touching it, and over all pairs.

    ``indicators``, (B, N + M) bool, are the rows of the indicated sample in each permutation.
    """

    def __init__(self, indicators: Tensor) -> None:
        self.indicators = indicators
        self.within, self.touching, self.own = indicators.new_zeros(
            3, len(indicators), dtype=torch.float64
        )
        self.everything, self.every_own, self.squares = indicators.new_zeros(3, dtype=torch.float64)

    def add(self, k: Tensor, a: slice, b: slice) -> None:
        """Add a tile, and its mirror image unless it is on the diagonal."""
        twice = 1 if a == b else 2
        in_a, in_b = (self.indicators[:, rows].T.to(k.dtype) for rows in (a, b))
        self.within += twice * (in_a * (k @ in_b)).sum(0, dtype=torch.float64)
        row_sums = k.sum(1, dtype=torch.float64)
        self.everything += twice * row_sums.sum()
        self.touching += in_a.double().T @ row_sums
        if twice == 2:
            self.touching += in_b.double().T @ k.sum(0, dtype=torch.float64)

    def add_own(self, k: Tensor, rows: slice) -> None:
        """Add pairs of rows with themselves, (rows,), which the unbiased estimator leaves out."""
        self.own += self.indicators[:, rows].double() @ k.double()
        self.every_own += k.sum(dtype=torch.float64)

    def add_squares(self, k: Tensor, twice: bool) -> None:
        """Add the squares of a tile."""
        self.squares += (2 if twice else 1) * k.square().sum(dtype=torch.float64)

    def mmd2(self, indicated: int, others: int, *, unbiased: bool = False) -> Tensor:
        """MMD^2 of each permutation, (B,) float64, given the rows of the two samples."""
        within_others = self.everything - 2 * self.touching + self.within
        between = self.touching - self.within
        mean_between = between / (indicated * others)
        if unbiased:
            return (
                (self.within - self.own) / (indicated * (indicated - 1))
                + (within_others - self.every_own + self.own) / (others * (others - 1))
                - 2 * mean_between
            )
        return self.within / indicated**2 + within_others / others**2 - 2 * mean_between


class Tiles:
    """The upper tiles of the matrices of several kernels, of the stacked rows [x; y].

    Iterating gives the kernels' excesses (see general/evaluate.py), a list of (rows of a, rows of
    b), and the rows of a and of b.
    """

    def __init__(self, x: Tensor, y: Tensor, kernels: Sequence[Kernel]) -> None:
        expression, x, y = encode(Sum(*kernels), x[None], y[None])
        self.views = Views(x, y, (None, None), expression)
        self.offset = x.shape[1]
        self.constants = [at_zero(part) for part in self.views.root.parts]

    def __iter__(self) -> Iterator[tuple[list[Tensor], slice, slice]]:
        blocks = self.views.blocks()
        for at, a in enumerate(blocks):
            for b in blocks[at:]:
                evaluation = self.views.evaluate(a, b)
                parts = [evaluation.excess(part)[0] for part in self.views.root.parts]
                yield parts, self._stacked_rows(a), self._stacked_rows(b)

    def _stacked_rows(self, block: Block) -> slice:
        rows = self.views.slice_rows(block)
        offset = block.side * self.offset
        return slice(rows.start + offset, rows.stop + offset)


def sum_pairs(
    indicators: Tensor,
    x: Tensor,
    y: Tensor,
    kernels: Sequence[Kernel],
    *,
    squares: bool = False,
) -> list[PairSums]:
    """Sum every kernel over the pairs of the rows [x; y], in one pass.

    Args:
        indicators: as in ``PairSums``.
        x, y: (N, D) and (M, D).
        kernels: one or more.
        squares: whether to sum the squares of the kernels over pairs of distinct rows too.
    """
    tiles = Tiles(x, y, kernels)
    sums = [PairSums(indicators) for _ in kernels]
    for parts, a, b in tiles:
        for one, k, constant in zip(sums, parts, tiles.constants, strict=True):
            one.add(k, a, b)
            if a == b:
                one.add_own(k.diagonal(), a)
            if squares:
                whole = k + constant
                if a == b:
                    whole.diagonal().zero_()
                one.add_squares(whole, a != b)
    return sums
