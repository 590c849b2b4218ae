"""The permute family: sums of k for many permutations of the same rows."""

import triton
import triton.language as tl

from .common import (
    UNSPECIALIZED,
    compute_gram,
    kernel_and_slope,
    load_squares,
    load_tile,
    mask_pairs,
)
from .value import locate_tile


@triton.jit
def members_dot(members, k, INPUT_PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """``members @ k``: zeros and ones are exact in bfloat16, so only k is split into parts."""
    total = tl.zeros((members.shape[0], k.shape[1]), tl.float32)
    if INTERPRET:
        total = tl.dot(members.to(tl.float32), k, total, input_precision="ieee")
    else:
        ones = members.to(tl.float32).to(tl.bfloat16)
        part = k.to(tl.bfloat16)
        total = tl.dot(ones, part, total)
        if INPUT_PRECISION != "bf16":
            rest = k - part.to(tl.float32)
            part = rest.to(tl.bfloat16)
            total = tl.dot(ones, part, total)
            if INPUT_PRECISION != "bf16x3":
                total = tl.dot(ones, (rest - part.to(tl.float32)).to(tl.bfloat16), total)
    return total


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_permute_sums_kernel(
    points_ptr,  # (R, D): rows of both samples, centred for a Gaussian
    squares_ptr,  # (R,)
    inverse_bandwidth_ptr,  # one number
    members_ptr,  # (B, R) bytes: 1 where a row is in the indicated sample
    within_ptr,  # (programs, B) float64: sums of k within the indicated sample
    touching_ptr,  # (programs, B) float64: sums of k between the indicated sample and all rows
    all_ptr,  # (programs,) float64: sums of k over all pairs
    parameters,
    R,
    B,
    D,
    row_stride,
    tiles,
    tiles_each,
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    UNBIASED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Consecutive tiles of the lower triangle of k, each against all permutations.

    A tile is computed once and stays on chip; the program accumulates sums in its own slots.
    """
    program = tl.program_id(0).to(tl.int64)
    slots = program * B
    row_blocks = tl.cdiv(R, BLOCK_M)
    inverse_bandwidth = tl.load(inverse_bandwidth_ptr)
    total = tl.full((), 0.0, tl.float64)
    first = program * tiles_each
    for tile in range(first, tl.minimum(first + tiles_each, tiles)):
        row_block, column_block = locate_tile(tile, row_blocks, row_blocks, True, 1)
        rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = column_block * BLOCK_M + tl.arange(0, BLOCK_M)
        gram = compute_gram(
            points_ptr,
            points_ptr,
            rows,
            columns,
            row_stride,
            row_stride,
            R,
            R,
            D,
            INPUT_PRECISION,
            INTERPRET,
            BLOCK_D,
        )
        k, _ = kernel_and_slope(
            gram,
            load_squares(squares_ptr, rows, R, KERNEL),
            load_squares(squares_ptr, columns, R, KERNEL),
            mask_pairs(rows, columns, R, R, True, KERNEL, UNBIASED),
            inverse_bandwidth,
            parameters,
            KERNEL,
            ORDER,
        )
        # a tile below the diagonal stands for its mirror image too
        below = tl.where(column_block < row_block, 1.0, 0.0)
        column_sums = tl.sum(k, 0) * below
        total += tl.sum(k) * (1.0 + below)
        for start in range(0, B, BLOCK_B):
            permutations = start + tl.arange(0, BLOCK_B)
            of_rows = load_tile(members_ptr, permutations, rows, R, B, R)
            of_columns = load_tile(members_ptr, permutations, columns, R, B, R).to(tl.float32)
            row_sums = members_dot(of_rows, k, INPUT_PRECISION, INTERPRET)
            within = tl.sum(of_columns * row_sums, 1) * (1.0 + below)
            touching = tl.sum(row_sums, 1) + tl.sum(of_columns * column_sums[None, :], 1)
            inside = permutations < B
            before = inside & (tl.full((BLOCK_B,), tile, tl.int64) > first)
            # float64, because a slot accumulates over all tiles
            slot = slots + permutations
            within_before = tl.load(within_ptr + slot, mask=before, other=0.0)
            touching_before = tl.load(touching_ptr + slot, mask=before, other=0.0)
            tl.store(within_ptr + slot, within_before + within, mask=inside)
            tl.store(touching_ptr + slot, touching_before + touching, mask=inside)
        # another thread of the program may read these slots for the next tile
        tl.debug_barrier()
    tl.store(all_ptr + program, total)
