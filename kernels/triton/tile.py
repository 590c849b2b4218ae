"""Launcher of the tile family: weights of all pairs, then their product with the points."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, float32

from ..reference import Result
from .call import Call
from .configs import Config
from .jit.tile import mmd2_tile_gradient_kernel, mmd2_tile_weights_kernel
from .prepass import BatchScalars, Stacked, compute_scalars, stack_samples
from .value import compute_value, split_stacked, sum_tiles
from .workspace import empty


def _weights_config(precision: str, m: int, n: int, d: int, **others: Any) -> Config:
    return Config(
        kernel=mmd2_tile_weights_kernel,
        input_precision=precision,
        blocks={"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d},
        pointers={"stacked_ptr": "bf16"} if precision == "bf16" else {},
        **others,
    )


def _gradient_config(precision: str, m: int, k: int, d: int, **others: Any) -> Config:
    return Config(
        kernel=mmd2_tile_gradient_kernel,
        input_precision=precision,
        blocks={"BLOCK_M": m, "BLOCK_K": k, "BLOCK_D": d},
        pointers={"stacked_ptr": "bf16"} if precision == "bf16" else {},
        **others,
    )


# 64 rows per block: class-wise samples of 90 and 180 rows waste less than with 128, and wgmma takes
# at least 64. They are one warpgroup's: eight warps would compute the same rows twice and pass the
# accumulator through shared memory, with 20 barriers per step at "tf32x3" instead of 2, and one
# program per multiprocessor instead of three (weights 178 registers of twice the threads against
# 138, gradient 238 against 156; twice the columns with 4 warps: two programs, or spills)
_WGMMA: dict[str, Any] = {"stages": 3, "tensor_cores": "wgmma"}
CONFIGS = (
    _weights_config("tf32x3", 64, 64, 32, **_WGMMA),
    _weights_config("bf16x3", 64, 64, 32, **_WGMMA),
    _weights_config("bf16", 64, 64, 64, **_WGMMA),
    _weights_config("ieee", 64, 64, 16, warps=8),
    _gradient_config("tf32x3", 64, 32, 64, **_WGMMA),
    _gradient_config("bf16x3", 64, 32, 64, **_WGMMA),
    _gradient_config("bf16", 64, 32, 128, **_WGMMA),
    _gradient_config("ieee", 64, 32, 16, warps=8),
)

# of the matrix of weights; more rows are processed in chunks: what is written is read again while
# it is in the cache, 50 MB of an H100 and 40 MB of an A100
WEIGHTS_BYTES = 32 * 2**20
WEIGHTS_ALIGNMENT = 16  # columns of a row: full vectors, and one compilation whatever N + M
PROGRAMS = 264  # two for each of the 132 multiprocessors of an H100; constant, as the bits follow
PIECE_STEPS = 8  # of a gradient's products, at least: fewer take less than adding the pieces


class KernelSums(NamedTuple):
    """Sums of k per tile, (C, slots each); None if not requested."""

    within: Tensor | None
    between: Tensor | None


class Chunk(NamedTuple):
    """The rows whose weights are in memory at one time."""

    elements: slice
    first_row: int
    rows: int


def _split_into_chunks(classes: int, rows: int, columns: int, block: int) -> Iterator[Chunk]:
    """Take as many batch elements at once as have a row block each that fits, at least one."""
    together = max(1, min(classes, WEIGHTS_BYTES // (4 * block * columns)))
    fitting = max(1, WEIGHTS_BYTES // (4 * together * block * columns)) * block
    for element in range(0, classes, together):
        elements = slice(element, min(element + together, classes))
        for first in range(0, rows, fitting):
            count = min(fitting, triton.cdiv(rows - first, block) * block)
            yield Chunk(elements, first, count)


def _compute_gradient(
    call: Call, stacked: Stacked, scalars: BatchScalars, own: int
) -> tuple[Tensor, KernelSums]:
    """Compute the gradient in x (``own`` 0) or y (1), and the sums of k of the same tiles."""
    classes, n, m, d = call.samples.sizes
    rows = (n, m)[own]
    config = call.find_config(CONFIGS, mmd2_tile_weights_kernel)
    assert config is not None
    block, width = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    row_blocks, x_blocks = triton.cdiv(rows, block), triton.cdiv(n, width)
    device = stacked.points.device
    partial = empty((classes, x_blocks + triton.cdiv(m, width), row_blocks), float32, device)
    gradient = empty((classes, rows, d), float32, device)
    weights: Tensor | None = None
    columns = triton.cdiv(n + m, WEIGHTS_ALIGNMENT) * WEIGHTS_ALIGNMENT
    for chunk in _split_into_chunks(classes, rows, columns, block):
        if weights is None:  # the first chunk is the largest
            weights = empty((chunk.elements.stop, chunk.rows, columns), float32, device)
        part = Stacked(*(tensor[chunk.elements] for tensor in stacked))
        numbers = BatchScalars(*(tensor[chunk.elements] for tensor in scalars))
        sums = partial[chunk.elements]
        _launch_weights(call, part, numbers, own, chunk, weights, sums, config)
        target = gradient[chunk.elements, chunk.first_row : chunk.first_row + chunk.rows]
        _launch_gradient(call, part, own, chunk, weights, target)
    if not call.problem.value:
        return gradient, KernelSums(None, None)
    x_part, y_part = partial[:, :x_blocks], partial[:, x_blocks:]
    return gradient, KernelSums(*((x_part, y_part) if own == 0 else (y_part, x_part)))


def _launch_weights(
    call: Call,
    stacked: Stacked,
    scalars: BatchScalars,
    own: int,
    chunk: Chunk,
    weights: Tensor,
    partial: Tensor,
    config: Config,
) -> None:
    _, n, m, d = call.samples.sizes
    classes, column_blocks, all_row_blocks = partial.shape
    row_blocks = chunk.rows // config.blocks["BLOCK_M"]
    mmd2_tile_weights_kernel[(classes * row_blocks * column_blocks,)](
        stacked_ptr=stacked.points,
        squares_ptr=stacked.squares,
        inverse_bandwidth_ptr=scalars.inverse_bandwidth,
        pairs_ptr=scalars.pairs,
        counts_ptr=scalars.counts,
        weights_ptr=weights,
        partial_ptr=partial,
        N=n,
        M=m,
        D=d,
        row_stride=d,
        weights_stride=weights.stride(1),
        first_row_block=chunk.first_row // config.blocks["BLOCK_M"],
        row_blocks=row_blocks,
        all_row_blocks=all_row_blocks,
        OWN=own,
        VALUE=call.problem.value,
        **call.bind_function(),
        **config.blocks,
        **config.options,
    )


def _choose_piece_steps(programs: int, steps: int) -> int:
    """Choose how many steps of the pairs a program takes, so that all of them occupy a GPU."""
    pieces = min(triton.cdiv(PROGRAMS, programs), max(1, steps // PIECE_STEPS))
    return int(triton.cdiv(steps, pieces))


def _launch_gradient(
    call: Call, stacked: Stacked, own: int, chunk: Chunk, weights: Tensor, gradient: Tensor
) -> None:
    """Compute the rows of a chunk, (C, rows, D): in pieces of the pairs if programs are few."""
    (classes, rows, d), (_, n, m, _) = gradient.shape, call.samples.sizes
    config = call.find_config(CONFIGS, mmd2_tile_gradient_kernel)
    assert config is not None
    row_blocks = triton.cdiv(chunk.rows, config.blocks["BLOCK_M"])
    programs = classes * row_blocks * triton.cdiv(d, config.blocks["BLOCK_D"])
    steps = triton.cdiv(n + m, config.blocks["BLOCK_K"])
    piece_steps = _choose_piece_steps(programs, steps)
    pieces = triton.cdiv(steps, piece_steps)
    target = gradient[None]
    if pieces > 1:
        target = empty((pieces, classes, rows, d), float32, gradient.device)
    mmd2_tile_gradient_kernel[(programs * pieces,)](
        weights_ptr=weights,
        stacked_ptr=stacked.points,
        gradient_ptr=target,
        N=n,
        M=m,
        D=d,
        row_stride=d,
        weights_stride=weights.stride(1),
        gradient_piece_stride=target.stride(0),
        gradient_class_stride=target.stride(1),
        first_row=chunk.first_row,
        rows=rows,
        chunk_rows=chunk.rows,
        pieces=pieces,
        piece_steps=piece_steps,
        OWN=own,
        **call.bind_product(),
        **config.blocks,
        **config.options,
    )
    if pieces > 1:
        torch.sum(target, 0, out=gradient)


def run(call: Call) -> Result:
    """Compute MMD^2 and gradients; tiles that no gradient needs are those of the value family."""
    stacked = stack_samples(call)
    scalars = compute_scalars(call, stacked.squares)
    within: list[Tensor | None] = [None, None]
    between: Tensor | None = None
    gradients: list[Tensor | None] = [None, None]
    for own, requested in enumerate((call.problem.grad_x, call.problem.grad_y)):
        if requested:
            gradients[own], sums = _compute_gradient(call, stacked, scalars, own)
            within[own], between = sums
    if not call.problem.value:
        return Result(None, *gradients)
    x, y = split_stacked(stacked, call.samples.sizes[1])
    within_x = sum_tiles(call, x, None, scalars) if within[0] is None else within[0]
    within_y = sum_tiles(call, y, None, scalars) if within[1] is None else within[1]
    between = sum_tiles(call, x, y, scalars) if between is None else between
    return Result(compute_value(within_x, within_y, between, scalars), *gradients)
