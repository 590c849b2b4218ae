"""Launches family V: sums of k per tile, and the value from them."""

from typing import NamedTuple

import triton
from torch import Tensor, bfloat16, float32

from .call import Call, Result
from .configs import config, memory_bound
from .encode import LAUNCH_OPTIONS, interpreting
from .jit.value import finish_kernel, sums_kernel
from .prepass import Elements, elements, stack
from .workspace import empty

GROUP = 8  # rows of tiles that go together: 24 blocks of points feed a wave of 132 tiles
FEW_BLOCKS = 16  # of rows: then all fit into the cache in any order


def _tiles(row_blocks: int, column_blocks: int, group: int, same: bool) -> int:
    if not same:
        return row_blocks * column_blocks
    groups = triton.cdiv(row_blocks, group)
    return group * group * groups * (groups + 1) // 2


class Side(NamedTuple):
    """A sample as tiles read it."""

    points: Tensor  # (C, rows, D), last dimension contiguous; centred for a Gaussian
    squares: Tensor  # (C, rows): squared norms; not read for a polynomial
    number: int  # 0: x, 1: y


def sums(call: Call, a: Side, b: Side | None, elements: Elements) -> Tensor:
    """Sums of k over tiles of a against b, or within a if b is None: (C, tiles)."""
    same, b = b is None, b or a
    classes, rows, d = a.points.shape
    tiles = config("value.sums_kernel", call.products, call.architecture)
    row_blocks = triton.cdiv(rows, tiles.blocks["BLOCK_M"])
    column_blocks = triton.cdiv(b.points.shape[1], tiles.blocks["BLOCK_N"])
    group = GROUP if row_blocks > FEW_BLOCKS else 1
    count = _tiles(row_blocks, column_blocks, group, same)
    partial = empty((classes, count), float32, a.points.device)
    sums_kernel[(classes * count,)](
        a.points,
        b.points,
        a.squares,
        b.squares,
        elements.inverse_bandwidth,
        elements.counts,
        partial,
        call.function.parameters,
        rows,
        b.points.shape[1],
        d,
        *a.points.stride()[:2],
        *b.points.stride()[:2],
        a.squares.stride(0),
        b.squares.stride(0),
        a.number,
        b.number,
        count,
        SAME=same,
        KERNEL=call.function.KERNEL,
        ORDER=call.function.ORDER,
        UNBIASED=call.unbiased,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        GROUP=group,
        **tiles.blocks,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **LAUNCH_OPTIONS,
    )
    return partial


def finish(within_x: Tensor, within_y: Tensor, between: Tensor, elements: Elements) -> Tensor:
    """MMD^2, (C,), from sums of k: each (C, slots), whose slots may have any two dimensions."""
    parts = (within_x, within_y, between)
    value = empty((within_x.shape[0],), float32, within_x.device)
    tiles = memory_bound("value.finish_kernel")
    finish_kernel[(value.shape[0],)](
        *parts,
        elements.pairs,
        value,
        *(part.stride(0) for part in parts),
        *(part[0].numel() for part in parts),
        **tiles.blocks,
        num_warps=tiles.warps,
        **LAUNCH_OPTIONS,
    )
    return value


def run(call: Call) -> Result:
    """MMD^2 by family V."""
    samples = call.samples
    if call.function.KERNEL == "gaussian":
        dtype = bfloat16 if call.products == "bf16" else float32
        stacked = stack(samples, dtype, centre=True)
        numbers, n = elements(call, stacked.squares), samples.sizes[1]
        x = Side(stacked.points[:, :n], stacked.squares[:, :n], 0)
        y = Side(stacked.points[:, n:], stacked.squares[:, n:], 1)
    else:
        # a polynomial is not centred: its tiles read the samples where they are
        squares = empty((1, 1), float32, samples.x.device)
        numbers = elements(call, squares)
        x, y = Side(samples.x, squares, 0), Side(samples.y, squares, 1)
    parts = (sums(call, x, None, numbers), sums(call, y, None, numbers), sums(call, x, y, numbers))
    return Result(finish(*parts, numbers), None, None)
