"""The stream family: many rows of few columns, without a matrix of weights in memory.

A block of rows stays on chip while all rows are read. The pre-pass centres and stacks the points.
"""

import triton
import triton.language as tl

from .common import UNSPECIALIZED, dot, kernel_and_slope, load_squares, load_tile, mask_pairs


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_stream_gradient_kernel(
    stacked_ptr,  # (C, N + M, D)
    squares_ptr,  # (C, N + M)
    inverse_bandwidth_ptr,  # (C,)
    pairs_ptr,  # (C, 3) float64
    counts_ptr,  # (C, 2) int32
    gradient_ptr,  # (C, N or M, D) float32
    totals_ptr,  # (C, slots) float64: shares of MMD^2, one per row block, from first_slot on
    parameters,
    N,
    M,
    D,
    row_blocks,
    slots,
    first_slot,
    OWN: tl.constexpr,  # 0: gradient in x, 1: in y
    VALUE_TERMS: tl.constexpr,  # "none", "within": own pairs, or "all": pairs with other as well
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    UNBIASED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of a block of rows, and its share of MMD^2."""
    program = tl.program_id(0).to(tl.int64)
    element, row_block = program // row_blocks, (program % row_blocks).to(tl.int32)
    rows, columns = row_block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    stacked_ptr += element * (N + M) * D
    squares_ptr += element * (N + M)
    size = N if OWN == 0 else M
    first = 0 if OWN == 0 else N
    row_count = tl.load(counts_ptr + element * 2 + OWN)
    own = load_tile(stacked_ptr + first * D, rows, columns, D, row_count, D)
    own_squares = load_squares(squares_ptr + first, rows, row_count, KERNEL)
    inverse_bandwidth = tl.load(inverse_bandwidth_ptr + element)
    gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    row_weights = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float64)
    for sample in tl.static_range(2):
        sample_first = 0 if sample == 0 else N
        count = tl.load(counts_ptr + element * 2 + sample)
        pairs = tl.load(pairs_ptr + element * 3 + (sample if sample == OWN else 2))
        share = 1.0 / pairs if sample == OWN else -1.0 / pairs
        k_rows = tl.zeros((BLOCK_M,), tl.float64)
        for start in range(0, count, BLOCK_N):
            others = start + tl.arange(0, BLOCK_N)
            points = load_tile(stacked_ptr + sample_first * D, others, columns, D, count, D)
            gram = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            gram = dot(own, tl.trans(points), gram, INPUT_PRECISION, INTERPRET)
            squares = load_squares(squares_ptr + sample_first, others, count, KERNEL)
            keep = mask_pairs(rows, others, row_count, count, sample == OWN, KERNEL, UNBIASED)
            k, slope = kernel_and_slope(
                gram, own_squares, squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
            )
            if VALUE_TERMS == "all" or (VALUE_TERMS == "within" and sample == OWN):
                k_rows += tl.sum(k, 1).to(tl.float64)
            weights = slope * (2.0 * share).to(tl.float32)
            row_weights += tl.sum(weights, 1)
            gradient = dot(weights, points, gradient, INPUT_PRECISION, INTERPRET)
        total += k_rows * (share if sample == OWN else 2.0 * share)
        # an invalid length is NaN, and the gradients of both samples must show it
        gradient += (pairs * 0.0).to(tl.float32)
    if KERNEL == "gaussian":
        gradient -= row_weights[:, None] * own.to(tl.float32)
    if VALUE_TERMS != "none":
        tl.store(totals_ptr + element * slots + first_slot + row_block, tl.sum(total, 0))
    offsets = (element * size + rows)[:, None] * D + columns[None, :]
    tl.store(gradient_ptr + offsets, gradient, mask=(rows < size)[:, None] & (columns < D)[None, :])
