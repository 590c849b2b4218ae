"""Launcher of the pre-pass: centred points, their squared norms, scalars per batch element."""

from typing import NamedTuple

import triton
from torch import Tensor, bfloat16, float32, float64, int32

from .call import Call, Samples
from .configs import Config
from .jit.prepass import (
    mmd2_prepass_scalars_kernel,
    mmd2_prepass_stack_kernel,
    mmd2_prepass_sums_kernel,
)
from .workspace import empty

SUMS = Config(kernel=mmd2_prepass_sums_kernel, blocks={"BLOCK_N": 32, "BLOCK_D": 128})
STACK = Config(kernel=mmd2_prepass_stack_kernel, blocks={"BLOCK_N": 16, "BLOCK_D": 256})
SCALARS = Config(kernel=mmd2_prepass_scalars_kernel, blocks={"BLOCK_N": 1024})
CONFIGS = (SUMS, STACK, SCALARS)

MAX_CHUNKS = 16  # of either sample: enough to occupy a GPU, few enough to add again in every block
CHUNK_ROWS = 64


class BatchScalars(NamedTuple):
    """Scalars of each batch element."""

    inverse_bandwidth: Tensor  # (C,)
    pairs: Tensor  # (C, 3) float64
    counts: Tensor  # (C, 2) int32


class Stacked(NamedTuple):
    """The rows [x; y] as tiles read them."""

    points: Tensor  # (C, N + M, D)
    squares: Tensor  # (C, N + M)


def stack_samples(call: Call) -> Stacked:
    """Stack the rows of both samples, for a Gaussian less their mean."""
    samples = call.samples
    classes, n, m, d = samples.sizes
    device, centre = samples.x.device, call.function.KERNEL == "gaussian"
    points = empty(
        (classes, n + m, d), bfloat16 if call.input_precision == "bf16" else float32, device
    )
    squares = empty((classes, n + m), float32, device)
    sums = _sum_chunks(samples) if centre else squares
    x_blocks, y_blocks = (triton.cdiv(rows, STACK.blocks["BLOCK_N"]) for rows in (n, m))
    mmd2_prepass_stack_kernel[(classes * (x_blocks + y_blocks),)](
        sums_ptr=sums,
        stacked_ptr=points,
        squares_ptr=squares,
        N=n,
        M=m,
        D=d,
        chunks=sums.shape[1] if centre else 0,
        blocks_x=x_blocks,
        blocks=x_blocks + y_blocks,
        CENTRE=centre,
        **samples.bind_points(),
        **samples.bind_lengths(squares),
        **STACK.blocks,
        **STACK.options,
    )
    return Stacked(points, squares)


def _sum_chunks(samples: Samples) -> Tensor:
    """Sum chunks of rows of either sample: (C, chunks, D)."""
    classes, n, m, d = samples.sizes
    rows = max(CHUNK_ROWS, triton.cdiv(max(n, m), MAX_CHUNKS))
    x_chunks, y_chunks = triton.cdiv(n, rows), triton.cdiv(m, rows)
    chunks = x_chunks + y_chunks
    sums = empty((classes, chunks, d), float32, samples.x.device)
    mmd2_prepass_sums_kernel[(classes * chunks * triton.cdiv(d, SUMS.blocks["BLOCK_D"]),)](
        sums_ptr=sums,
        N=n,
        M=m,
        D=d,
        chunk_rows=rows,
        chunks_x=x_chunks,
        chunks=chunks,
        **samples.bind_points(),
        **samples.bind_lengths(sums),
        **SUMS.blocks,
        **SUMS.options,
    )
    return sums


def compute_scalars(call: Call, squares: Tensor) -> BatchScalars:
    """Compute bandwidths, pairs and counts; ``squares`` are read for the mean bandwidth only."""
    classes, n, m, _ = call.samples.sizes
    device = squares.device
    scalars = BatchScalars(
        empty((classes,), float32, device),
        empty((classes, 3), float64, device),
        empty((classes, 2), int32, device),
    )
    mmd2_prepass_scalars_kernel[(classes,)](
        squares_ptr=squares,
        inverse_bandwidth_ptr=scalars.inverse_bandwidth,
        pairs_ptr=scalars.pairs,
        counts_ptr=scalars.counts,
        N=n,
        M=m,
        UNBIASED=call.unbiased,
        **call.bind_bandwidth(scalars.inverse_bandwidth),
        **call.samples.bind_lengths(scalars.counts),
        **SCALARS.blocks,
        **SCALARS.options,
    )
    return scalars
