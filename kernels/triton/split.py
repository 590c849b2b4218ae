"""Launches family D: columns split over programs, for few batch elements of many columns."""

from typing import Any, NamedTuple

import triton
from torch import Tensor, float32, float64

from . import tile
from .call import Call, Result
from .configs import Config, config
from .encode import LAUNCH_OPTIONS, interpreting
from .jit.split import products_kernel, weights_kernel
from .jit.split_gradient import pull_kernel
from .workspace import empty

PROGRAMS = 264  # two for each of the 132 processors of an H100; a constant, for the bits' sake
MAX_SLICES = 16
OLDEST = 90  # the table lists no tiles of this family for less
MAX_ROWS = 512  # of x and y: a program of the second launch holds them side by side


class Rows(NamedTuple):
    """The stacked rows whose pairs with all rows are wanted."""

    first: int
    number: int


class Split(NamedTuple):
    """Blocks of rows, and slices of the columns."""

    x_row_blocks: int
    row_blocks: int
    x_column_blocks: int
    column_blocks: int
    slice_steps: int
    slices: int


class Scratch(NamedTuple):
    """What the launches hand on."""

    partial: Tensor  # (C, slices, R, N + M)
    means: Tensor  # (C, column_blocks, D)
    spreads: Tensor  # (C, slices, column_blocks)
    weights: Tensor  # (C, R, N + M)


def run(call: Call) -> Result:
    """Value and gradients in three launches, four if both gradients are asked for."""
    samples, problem = call.samples, call.problem
    _, n, m, _ = samples.sizes
    unlisted = call.products == "ieee" or call.architecture < OLDEST
    if unlisted or n + m > MAX_ROWS or samples.x.dtype != samples.y.dtype:
        return tile.run(call)
    rows = Rows(0, n + m)
    if not problem.value and problem.gradients == 1:
        rows = Rows(n, m) if problem.grad_y else Rows(0, n)
    tiles = config("split.products_kernel", call.products, call.architecture)
    split = _split(call, rows, tiles)
    scratch = _scratch(call, rows, split)
    _products(call, rows, split, scratch, tiles)
    totals = _weights(call, rows, split, scratch, tiles)
    value = totals.sum(-1).to(float32) if problem.value else None
    grad_x, grad_y = (
        _pull(call, rows, split, scratch, own) if wanted else None
        for own, wanted in enumerate((problem.grad_x, problem.grad_y))
    )
    return Result(value, grad_x, grad_y)


def _split(call: Call, rows: Rows, tiles: Config) -> Split:
    classes, n, m, d = call.samples.sizes
    high, wide = tiles.blocks["BLOCK_M"], tiles.blocks["BLOCK_N"]
    x_row_blocks = triton.cdiv(n, high) if rows.first == 0 else 0
    y_row_blocks = triton.cdiv(m, high) if rows.first + rows.number == n + m else 0
    row_blocks = x_row_blocks + y_row_blocks
    x_column_blocks = triton.cdiv(n, wide)
    column_blocks = x_column_blocks + triton.cdiv(m, wide)
    steps = triton.cdiv(d, tiles.blocks["BLOCK_D"])
    slices = min(MAX_SLICES, steps, triton.cdiv(PROGRAMS, classes * row_blocks * column_blocks))
    slice_steps = triton.cdiv(steps, slices)
    slices = triton.cdiv(steps, slice_steps)
    return Split(x_row_blocks, row_blocks, x_column_blocks, column_blocks, slice_steps, slices)


def _scratch(call: Call, rows: Rows, split: Split) -> Scratch:
    classes, n, m, d = call.samples.sizes
    device = call.samples.x.device
    return Scratch(
        empty((classes, split.slices, rows.number, n + m), float32, device),
        empty((classes, split.column_blocks, d), float32, device),
        empty((classes, split.slices, split.column_blocks), float32, device),
        empty((classes, rows.number, n + m), float32, device),
    )


def _or_any(pointer: Tensor | None, stand_in: Tensor) -> Tensor:
    # a kernel needs some pointer, even for what a constexpr says is not there
    return stand_in if pointer is None else pointer


def _options(tiles: Config) -> dict[str, Any]:
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, **LAUNCH_OPTIONS}


def _lengths(call: Call, stand_in: Tensor) -> tuple[Tensor, ...]:
    return tuple(
        _or_any(given, stand_in) for given in (call.samples.x_lengths, call.samples.y_lengths)
    )


def _strides(call: Call) -> tuple[int, ...]:
    return (*call.samples.x.stride()[:2], *call.samples.y.stride()[:2])


def _products(call: Call, rows: Rows, split: Split, scratch: Scratch, tiles: Config) -> None:
    classes, n, m, d = call.samples.sizes
    programs = classes * split.row_blocks * split.column_blocks * split.slices
    products_kernel[(programs,)](
        call.samples.x,
        call.samples.y,
        *_lengths(call, scratch.means),
        scratch.partial,
        scratch.means,
        scratch.spreads,
        *_strides(call),
        n,
        m,
        d,
        *rows,
        split.slice_steps,
        split.slices,
        split.x_row_blocks,
        split.row_blocks,
        split.x_column_blocks,
        split.column_blocks,
        KERNEL=call.function.KERNEL,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        **call.samples.lengths_given,
        **tiles.blocks,
        **_options(tiles),
    )


def _weights(call: Call, rows: Rows, split: Split, scratch: Scratch, tiles: Config) -> Tensor:
    classes, n, m, d = call.samples.sizes
    small = config("split.weights_kernel", "none", call.architecture)
    row_blocks = triton.cdiv(rows.number, small.blocks["BLOCK_R"])
    totals = empty((classes, row_blocks), float64, scratch.weights.device)
    weights_kernel[(classes * row_blocks,)](
        scratch.partial,
        scratch.means,
        scratch.spreads,
        _or_any(call.bandwidth, scratch.means),
        *_lengths(call, scratch.means),
        scratch.weights,
        totals,
        call.function.parameters,
        int(call.bandwidth is not None and call.bandwidth.numel() > 1),
        n,
        m,
        d,
        *rows,
        split.slices,
        row_blocks,
        split.x_column_blocks,
        split.column_blocks,
        MEAN_BANDWIDTH=call.mean_bandwidth,
        HAS_BANDWIDTH=call.bandwidth is not None,
        UNBIASED=call.unbiased,
        KERNEL=call.function.KERNEL,
        ORDER=call.function.ORDER,
        **call.samples.lengths_given,
        **{
            **small.blocks,
            "BLOCK_K": max(16, triton.next_power_of_2(n + m)),
            "BLOCK_N": tiles.blocks["BLOCK_N"],
        },
        **_options(small),
    )
    return totals


def _pull(call: Call, rows: Rows, split: Split, scratch: Scratch, own: int) -> Tensor:
    classes, n, m, d = call.samples.sizes
    size = (n, m)[own]
    tiles = config("split_gradient.pull_kernel", call.products, call.architecture)
    row_blocks = triton.cdiv(size, tiles.blocks["BLOCK_M"])
    gradient = empty((classes, size, d), float32, scratch.weights.device)
    pull_kernel[(classes * row_blocks * triton.cdiv(d, tiles.blocks["BLOCK_D"]),)](
        call.samples.x,
        call.samples.y,
        *_lengths(call, scratch.means),
        scratch.weights,
        scratch.means,
        gradient,
        *_strides(call),
        n,
        m,
        d,
        *rows,
        row_blocks,
        split.column_blocks,
        OWN=own,
        KERNEL=call.function.KERNEL,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        **call.samples.lengths_given,
        **tiles.blocks,
        **_options(tiles),
    )
    return gradient
