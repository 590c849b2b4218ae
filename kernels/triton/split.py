"""Launcher of the split family: columns split over programs, for few batch elements."""

from typing import Any, NamedTuple

import triton
from torch import Tensor, float32, float64

from ..reference import Result
from . import tile
from .call import Call
from .configs import Config
from .jit.split import mmd2_split_products_kernel, mmd2_split_weights_kernel
from .jit.split_gradient import mmd2_split_gradient_kernel
from .workspace import empty


def _products_config(input_precision: str) -> Config:
    return Config(
        kernel=mmd2_split_products_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32},
        stages=3,
        architectures=(90,),
        tensor_cores="wgmma",
    )


def _gradient_config(input_precision: str) -> Config:
    return Config(
        kernel=mmd2_split_gradient_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 64},
        stages=3,
        architectures=(90,),
        tensor_cores="wgmma",
    )


WEIGHTS = Config(
    kernel=mmd2_split_weights_kernel,
    # BLOCK_K grows with the number of rows, to this size at most
    blocks={"BLOCK_R": 8, "BLOCK_K": 512, "BLOCK_N": 64, "BLOCK_D": 256},
    warps=8,
    architectures=(90,),
    reason="4 warps spill",
)
FEW_ROWS = 2  # BLOCK_R where 8 rows make fewer than PROGRAMS
# one warpgroup per 64 rows, as in tile.py; with 8 warps the products have 25 barriers per step
# instead of 6 and the gradient 24 instead of 4, and one program per multiprocessor instead of two
# and three; 128 columns of products spill
CONFIGS = (
    _products_config("tf32x3"),
    _products_config("bf16x3"),
    _products_config("bf16"),
    WEIGHTS,
    _gradient_config("tf32x3"),
    _gradient_config("bf16x3"),
    _gradient_config("bf16"),
)

PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100; constant, as the bits follow
MAX_SLICES = 16
ALIGNMENT = 16  # of the weights of either sample: full vectors, one compilation whatever N and M
MAX_ROWS = WEIGHTS.blocks["BLOCK_K"]  # of x and y: a program of the second launch holds all


class Rows(NamedTuple):
    """The stacked rows whose pairs with all rows are computed."""

    first: int
    number: int


class Partition(NamedTuple):
    """Blocks of rows, and slices of the columns."""

    x_row_blocks: int
    row_blocks: int
    x_column_blocks: int
    column_blocks: int
    slice_steps: int
    slices: int


class Workspace(NamedTuple):
    """Results of one launch that later launches read."""

    partial: Tensor  # (C, slices, R, N + M)
    means: Tensor  # (C, column_blocks, D)
    spreads: Tensor  # (C, slices, column_blocks)
    weights: Tensor  # (C, R, first_y_column + M, padded to ALIGNMENT)


def run(call: Call) -> Result:
    """Compute value and gradients in three launches, four for both gradients."""
    samples, problem = call.samples, call.problem
    _, n, m, _ = samples.sizes
    config = call.find_config(CONFIGS, mmd2_split_products_kernel)
    if config is None or n + m > MAX_ROWS or samples.x.dtype != samples.y.dtype:
        return tile.run(call)
    rows = Rows(0, n + m)
    if not problem.value and problem.gradients == 1:
        rows = Rows(n, m) if problem.grad_y else Rows(0, n)
    partition = _partition(call, rows, config)
    workspace = _allocate_workspace(call, rows, partition)
    _launch_products(call, rows, partition, workspace, config)
    totals = _launch_weights(call, rows, partition, workspace, config)
    value = totals.sum(-1).to(float32) if problem.value else None
    grad_x, grad_y = (
        _launch_gradient(call, rows, partition, workspace, own) if requested else None
        for own, requested in enumerate((problem.grad_x, problem.grad_y))
    )
    return Result(value, grad_x, grad_y)


def _partition(call: Call, rows: Rows, config: Config) -> Partition:
    """Split the work into PROGRAMS programs at most, if the blocks are not more."""
    classes, n, m, d = call.samples.sizes
    height, width = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    x_row_blocks = triton.cdiv(n, height) if rows.first == 0 else 0
    y_row_blocks = triton.cdiv(m, height) if rows.first + rows.number == n + m else 0
    row_blocks = x_row_blocks + y_row_blocks
    x_column_blocks = triton.cdiv(n, width)
    column_blocks = x_column_blocks + triton.cdiv(m, width)
    steps = triton.cdiv(d, config.blocks["BLOCK_D"])
    # rounded down: a few programs more than fit at once would take as long as twice as many
    slices = min(MAX_SLICES, steps, max(1, PROGRAMS // (classes * row_blocks * column_blocks)))
    slice_steps = triton.cdiv(steps, slices)
    slices = triton.cdiv(steps, slice_steps)
    return Partition(x_row_blocks, row_blocks, x_column_blocks, column_blocks, slice_steps, slices)


def _allocate_workspace(call: Call, rows: Rows, partition: Partition) -> Workspace:
    classes, n, m, d = call.samples.sizes
    device = call.samples.x.device
    return Workspace(
        empty((classes, partition.slices, rows.number, n + m), float32, device),
        empty((classes, partition.column_blocks, d), float32, device),
        empty((classes, partition.slices, partition.column_blocks), float32, device),
        empty((classes, rows.number, _pad(n) + _pad(m)), float32, device),
    )


def _pad(columns: int) -> int:
    return int(triton.cdiv(columns, ALIGNMENT)) * ALIGNMENT


def _bind_weights(call: Call, workspace: Workspace) -> dict[str, Any]:
    """Arguments of the kernels that write and read the weights."""
    return {
        "weights_ptr": workspace.weights,
        "weights_stride": workspace.weights.stride(1),
        "first_y_column": _pad(call.samples.sizes[1]),
    }


def _bind_rows(call: Call, rows: Rows) -> dict[str, int]:
    """Arguments that all three kernels share."""
    _, n, m, d = call.samples.sizes
    return {"N": n, "M": m, "D": d, "first_row": rows.first, "R": rows.number}


def _launch_products(
    call: Call, rows: Rows, partition: Partition, workspace: Workspace, config: Config
) -> None:
    blocks = call.samples.sizes[0] * partition.row_blocks * partition.column_blocks
    mmd2_split_products_kernel[(blocks * partition.slices,)](
        partial_ptr=workspace.partial,
        means_ptr=workspace.means,
        spreads_ptr=workspace.spreads,
        **partition._asdict(),
        **call.bind_chain(first=True),
        **_bind_rows(call, rows),
        **call.samples.bind_points(),
        **call.samples.bind_lengths(workspace.means),
        **call.bind_product(),
        **config.blocks,
        **config.options,
    )


def _launch_weights(
    call: Call, rows: Rows, partition: Partition, workspace: Workspace, config: Config
) -> Tensor:
    classes, n, m, _ = call.samples.sizes
    height = WEIGHTS.blocks["BLOCK_R"]
    if classes * triton.cdiv(rows.number, height) < PROGRAMS:
        height = FEW_ROWS
    row_blocks = triton.cdiv(rows.number, height)
    totals = empty((classes, row_blocks), float64, workspace.weights.device)
    blocks = {
        **WEIGHTS.blocks,
        "BLOCK_R": height,
        "BLOCK_K": max(16, triton.next_power_of_2(n + m)),
        "BLOCK_N": config.blocks["BLOCK_N"],
    }
    mmd2_split_weights_kernel[(classes * row_blocks,)](
        partial_ptr=workspace.partial,
        means_ptr=workspace.means,
        spreads_ptr=workspace.spreads,
        totals_ptr=totals,
        parameters=call.function.parameters,
        slices=partition.slices,
        row_blocks=row_blocks,
        x_column_blocks=partition.x_column_blocks,
        column_blocks=partition.column_blocks,
        UNBIASED=call.unbiased,
        KERNEL=call.function.KERNEL,
        ORDER=call.function.ORDER,
        **_bind_rows(call, rows),
        **_bind_weights(call, workspace),
        **call.bind_bandwidth(workspace.means),
        **call.bind_chain(first=False),
        **call.samples.bind_lengths(workspace.means),
        **blocks,
        **WEIGHTS.options,
    )
    return totals


def _launch_gradient(
    call: Call, rows: Rows, partition: Partition, workspace: Workspace, own: int
) -> Tensor:
    classes, size, d = (call.samples.x, call.samples.y)[own].shape
    config = call.find_config(CONFIGS, mmd2_split_gradient_kernel)
    assert config is not None
    row_blocks = triton.cdiv(size, config.blocks["BLOCK_M"])
    gradient = empty((classes, size, d), float32, workspace.weights.device)
    mmd2_split_gradient_kernel[(classes * row_blocks * triton.cdiv(d, config.blocks["BLOCK_D"]),)](
        means_ptr=workspace.means,
        gradient_ptr=gradient,
        row_blocks=row_blocks,
        column_blocks=partition.column_blocks,
        OWN=own,
        **call.bind_chain(first=False),
        **_bind_rows(call, rows),
        **_bind_weights(call, workspace),
        **call.samples.bind_points(),
        **call.samples.bind_lengths(workspace.means),
        **call.bind_product(),
        **config.blocks,
        **config.options,
    )
    return gradient
