"""Launcher of the value family: sums of k per tile, and MMD^2 from them."""

from typing import Any, NamedTuple

import triton
from torch import Tensor, float32

from ..reference import Result
from .call import Call
from .configs import Config
from .jit.value import mmd2_value_finish_kernel, mmd2_value_sums_kernel
from .prepass import BatchScalars, Stacked, compute_scalars, stack_samples
from .workspace import empty


def _config(input_precision: str, size: int, depth: int, warps: int, **others: Any) -> Config:
    return Config(
        kernel=mmd2_value_sums_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": size, "BLOCK_N": size, "BLOCK_D": depth},
        warps=warps,
        **others,
    )


FINISH = Config(kernel=mmd2_value_finish_kernel, blocks={"BLOCK_N": 1024})
CONFIGS = (
    FINISH,
    _config("tf32x3", 128, 32, 8, stages=3, tensor_cores="wgmma", architectures=(90,)),
    _config("bf16x3", 128, 32, 8, stages=3, tensor_cores="wgmma", architectures=(90,)),
    _config(
        "bf16",
        *(128, 64, 8),
        stages=3,
        tensor_cores="wgmma",
        pointers={"a_ptr": "bf16", "b_ptr": "bf16"},
    ),
    _config("tf32x3", 64, 32, 4, stages=3, architectures=(80,), reason="128 rows spill"),
    _config("bf16x3", 64, 32, 4, stages=3, architectures=(80,), reason="128 rows spill"),
    _config("ieee", 32, 16, 4, reason="64 rows spill for a polynomial of half precision"),
)

GROUP = 8  # row blocks that are visited together: 24 blocks of points feed a wave of 132 tiles
FEW_BLOCKS = 16  # row blocks that fit into the cache in any order


class TileSample(NamedTuple):
    """A sample as tiles read it."""

    points: Tensor  # (C, rows, D), last dimension contiguous; centred for a Gaussian
    squares: Tensor  # (C, rows): squared norms; not read for a polynomial
    number: int  # 0: x, 1: y

    def bind(self, name: str) -> dict[str, Any]:
        """Arguments of a kernel that calls this sample ``name``."""
        return {
            f"{name}_ptr": self.points,
            f"{name}_squares_ptr": self.squares,
            f"{name}_class_stride": self.points.stride(0),
            f"{name}_row_stride": self.points.stride(1),
            f"{name}_squares_step": self.squares.stride(0),
            f"{name}_sample": self.number,
        }


def split_stacked(stacked: Stacked, n: int) -> tuple[TileSample, TileSample]:
    """Split stacked rows into x, the first ``n``, and y."""
    return (
        TileSample(stacked.points[:, :n], stacked.squares[:, :n], 0),
        TileSample(stacked.points[:, n:], stacked.squares[:, n:], 1),
    )


def _count_tiles(row_blocks: int, column_blocks: int, group: int, same: bool) -> int:
    if not same:
        return row_blocks * column_blocks
    groups = triton.cdiv(row_blocks, group)
    return group * group * groups * (groups + 1) // 2


def sum_tiles(call: Call, a: TileSample, b: TileSample | None, scalars: BatchScalars) -> Tensor:
    """Sum k over tiles of a against b, or within a if b is None: (C, tiles)."""
    same, b = b is None, b or a
    classes, rows, d = a.points.shape
    config = call.find_config(CONFIGS, mmd2_value_sums_kernel)
    assert config is not None
    row_blocks = triton.cdiv(rows, config.blocks["BLOCK_M"])
    column_blocks = triton.cdiv(b.points.shape[1], config.blocks["BLOCK_N"])
    group = GROUP if row_blocks > FEW_BLOCKS else 1
    tiles = _count_tiles(row_blocks, column_blocks, group, same)
    partial = empty((classes, tiles), float32, a.points.device)
    mmd2_value_sums_kernel[(classes * tiles,)](
        inverse_bandwidth_ptr=scalars.inverse_bandwidth,
        counts_ptr=scalars.counts,
        partial_ptr=partial,
        A=rows,
        B=b.points.shape[1],
        D=d,
        tiles=tiles,
        SAME=same,
        GROUP=group,
        **a.bind("a"),
        **b.bind("b"),
        **call.bind_function(),
        **config.blocks,
        **config.options,
    )
    return partial


def compute_value(
    within_x: Tensor, within_y: Tensor, between: Tensor, scalars: BatchScalars
) -> Tensor:
    """Compute MMD^2, (C,), from sums of k: (C, slots), with any two dimensions for the slots."""
    value = empty((within_x.shape[0],), float32, within_x.device)
    mmd2_value_finish_kernel[(value.shape[0],)](
        within_x_ptr=within_x,
        within_y_ptr=within_y,
        between_ptr=between,
        pairs_ptr=scalars.pairs,
        value_ptr=value,
        x_step=within_x.stride(0),
        y_step=within_y.stride(0),
        between_step=between.stride(0),
        slots_x=within_x[0].numel(),
        slots_y=within_y[0].numel(),
        slots_between=between[0].numel(),
        **FINISH.blocks,
        **FINISH.options,
    )
    return value


def run(call: Call) -> Result:
    """Compute MMD^2 without a gradient."""
    samples = call.samples
    if call.function.KERNEL == "gaussian":
        stacked = stack_samples(call)
        scalars = compute_scalars(call, stacked.squares)
        x, y = split_stacked(stacked, samples.sizes[1])
    else:
        # a polynomial is not centred: its tiles read the samples themselves
        squares = empty((1, 1), float32, samples.x.device)
        scalars = compute_scalars(call, squares)
        x, y = TileSample(samples.x, squares, 0), TileSample(samples.y, squares, 1)
    within_x, within_y = sum_tiles(call, x, None, scalars), sum_tiles(call, y, None, scalars)
    between = sum_tiles(call, x, y, scalars)
    return Result(compute_value(within_x, within_y, between, scalars), None, None)
