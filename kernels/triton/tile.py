"""Launches family T: weights of all pairs, then their product with the points."""

from collections.abc import Iterator
from typing import NamedTuple

import triton
from torch import Tensor, bfloat16, float32

from .call import Call, Result
from .configs import Config, config
from .encode import LAUNCH_OPTIONS, interpreting
from .jit.tile import pull_kernel, weights_kernel
from .prepass import Elements, Stacked, elements, stack
from .value import Side, finish, sums
from .workspace import empty

WEIGHTS_BYTES = 256 * 2**20  # of the matrix of weights; more rows go in turns


class Sums(NamedTuple):
    """Sums of k per tile, (C, slots each)."""

    within: Tensor | None  # None if not asked
    between: Tensor | None


class Turn(NamedTuple):
    """The part of the weights that is there at one time."""

    elements: slice
    first_row: int
    rows: int


def _turns(classes: int, rows: int, columns: int, block: int) -> Iterator[Turn]:
    """Whole batch elements if a row of blocks of all of them fits, else one by one."""
    together = max(1, min(classes, WEIGHTS_BYTES // (4 * block * columns)))
    fitting = max(1, WEIGHTS_BYTES // (4 * together * block * columns)) * block
    for element in range(0, classes, together):
        elements = slice(element, min(element + together, classes))
        for first in range(0, rows, fitting):
            count = min(fitting, triton.cdiv(rows - first, block) * block)
            yield Turn(elements, first, count)


def gradient(call: Call, stacked: Stacked, elements: Elements, own: int) -> tuple[Tensor, Sums]:
    """Gradient in x (``own`` 0) or y (1), and sums of k in the blocks it passes."""
    classes, n, m, d = call.samples.sizes
    rows = (n, m)[own]
    tiles = config("tile.weights_kernel", call.products, call.architecture)
    block, width = tiles.blocks["BLOCK_M"], tiles.blocks["BLOCK_N"]
    row_blocks, x_blocks = triton.cdiv(rows, block), triton.cdiv(n, width)
    device = stacked.points.device
    partial = empty((classes, x_blocks + triton.cdiv(m, width), row_blocks), float32, device)
    result = empty((classes, rows, d), float32, device)
    weights: Tensor | None = None
    for turn in _turns(classes, rows, n + m, block):
        if weights is None:  # the first turn is the largest
            weights = empty((turn.elements.stop, turn.rows, n + m), float32, device)
        part = Stacked(*(tensor[turn.elements] for tensor in stacked))
        numbers = Elements(*(tensor[turn.elements] for tensor in elements))
        _weights(call, part, numbers, own, turn, weights, partial[turn.elements], tiles)
        _pull(call, part, own, turn, weights, result[turn.elements])
    if not call.problem.value:
        return result, Sums(None, None)
    x_part, y_part = partial[:, :x_blocks], partial[:, x_blocks:]
    return result, Sums(*((x_part, y_part) if own == 0 else (y_part, x_part)))


def _weights(
    call: Call,
    stacked: Stacked,
    elements: Elements,
    own: int,
    turn: Turn,
    weights: Tensor,
    partial: Tensor,
    tiles: Config,
) -> None:
    _, n, m, d = call.samples.sizes
    classes, column_blocks, all_row_blocks = partial.shape
    row_blocks = turn.rows // tiles.blocks["BLOCK_M"]
    weights_kernel[(classes * row_blocks * column_blocks,)](
        *stacked,
        *elements,
        weights,
        partial,
        call.function.parameters,
        n,
        m,
        d,
        d,
        turn.first_row // tiles.blocks["BLOCK_M"],
        row_blocks,
        all_row_blocks,
        OWN=own,
        KERNEL=call.function.KERNEL,
        ORDER=call.function.ORDER,
        UNBIASED=call.unbiased,
        VALUE=call.problem.value,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        **tiles.blocks,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **LAUNCH_OPTIONS,
    )


def _pull(
    call: Call, stacked: Stacked, own: int, turn: Turn, weights: Tensor, result: Tensor
) -> None:
    classes, n, m, d = stacked.points.shape[0], *call.samples.sizes[1:]
    tiles = config("tile.pull_kernel", call.products, call.architecture)
    row_blocks = triton.cdiv(turn.rows, tiles.blocks["BLOCK_M"])
    pull_kernel[(classes * row_blocks * triton.cdiv(d, tiles.blocks["BLOCK_D"]),)](
        weights,
        stacked.points,
        result,
        n,
        m,
        d,
        d,
        turn.first_row,
        turn.rows,
        OWN=own,
        KERNEL=call.function.KERNEL,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        **tiles.blocks,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **LAUNCH_OPTIONS,
    )


def run(call: Call) -> Result:
    """MMD^2 and gradients by family T; the blocks no gradient passes are those of family V."""
    gaussian = call.function.KERNEL == "gaussian"
    dtype = bfloat16 if call.products == "bf16" else float32
    stacked = stack(call.samples, dtype, centre=gaussian)
    numbers = elements(call, stacked.squares)
    within: list[Tensor | None] = [None, None]
    between: Tensor | None = None
    gradients: list[Tensor | None] = [None, None]
    for own, wanted in enumerate((call.problem.grad_x, call.problem.grad_y)):
        if wanted:
            gradients[own], found = gradient(call, stacked, numbers, own)
            within[own], between = found
    if not call.problem.value:
        return Result(None, *gradients)
    n = call.samples.sizes[1]
    x = Side(stacked.points[:, :n], stacked.squares[:, :n], 0)
    y = Side(stacked.points[:, n:], stacked.squares[:, n:], 1)
    for own, side in enumerate((x, y)):
        if within[own] is None:
            within[own] = sums(call, side, None, numbers)
    if between is None:
        between = sums(call, x, y, numbers)
    assert within[0] is not None
    assert within[1] is not None
    return Result(finish(within[0], within[1], between, numbers), *gradients)
