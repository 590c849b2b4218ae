"""The split family: few batch elements of many columns; programs share the columns (split-K).

Three launches: products of all pairs over slices of the columns; weights from the slices, added in
a fixed order; gradients (``split_gradient.py``). Rows are numbered as if stacked, those of x first.
There is no pre-pass: for a Gaussian the first kernel writes ``-|a - b|^2 / 2`` over its slice,
which does not depend on the origin. Loops that only add what they load are unrolled, so that four
loads are under way at a time.
"""

import triton
import triton.language as tl

from .common import (
    UNSPECIALIZED,
    count_rows,
    dot,
    invert_bandwidth,
    kernel_and_slope,
    let_next_launch_start,
    load_tile,
    sum_squares,
    wait_for_launch_before,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_split_products_kernel(
    x_ptr,  # (C, N, D), rows x_row_stride apart
    y_ptr,  # (C, M, D)
    x_lengths_ptr,  # (C,) integers
    y_lengths_ptr,
    partial_ptr,  # (C, slices, R, N + M): R rows, from first_row on
    means_ptr,  # (C, column_blocks, D): means of blocks of rows, less the first row of x
    spreads_ptr,  # (C, slices, column_blocks): squared distances of rows from the block's mean
    x_class_stride,
    x_row_stride,
    y_class_stride,
    y_row_stride,
    N,
    M,
    D,
    first_row,
    R,
    slice_steps,
    slices,
    x_row_blocks,
    row_blocks,
    x_column_blocks,
    column_blocks,
    PDL: tl.constexpr,
    HAS_X_LENGTHS: tl.constexpr,
    HAS_Y_LENGTHS: tl.constexpr,
    KERNEL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of pairs over a slice of the columns."""
    wait_for_launch_before(PDL)
    let_next_launch_start(PDL)
    program = tl.program_id(0).to(tl.int64)
    row_block = (program % row_blocks).to(tl.int32)
    column_block = (program // row_blocks % column_blocks).to(tl.int32)
    piece = (program // row_blocks // column_blocks % slices).to(tl.int32)
    element = program // row_blocks // column_blocks // slices
    x_count, _ = count_rows(x_lengths_ptr, element, N, HAS_X_LENGTHS)
    y_count, _ = count_rows(y_lengths_ptr, element, M, HAS_Y_LENGTHS)
    x_ptr += element * x_class_stride
    y_ptr += element * y_class_stride
    a_is_x, b_is_x = row_block < x_row_blocks, column_block < x_column_blocks
    a_ptr, b_ptr = tl.where(a_is_x, x_ptr, y_ptr), tl.where(b_is_x, x_ptr, y_ptr)
    a_stride = tl.where(a_is_x, x_row_stride, y_row_stride)
    b_stride = tl.where(b_is_x, x_row_stride, y_row_stride)
    a_count, b_count = tl.where(a_is_x, x_count, y_count), tl.where(b_is_x, x_count, y_count)
    rows = tl.where(a_is_x, row_block, row_block - x_row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    others = tl.where(b_is_x, column_block, column_block - x_column_blocks) * BLOCK_N
    # 0 beyond the length: the origin of such a block is the first row of x
    filled = tl.minimum(tl.maximum(b_count - others, 0), BLOCK_N)
    others += tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    a_squares = tl.zeros((BLOCK_M,), tl.float32)
    b_squares = tl.zeros((BLOCK_N,), tl.float32)
    means_ptr += (element * column_blocks + column_block) * D
    for step in range(piece * slice_steps, (piece + 1) * slice_steps):
        columns = step * BLOCK_D + tl.arange(0, BLOCK_D)
        a = load_tile(a_ptr, rows, columns, a_stride, a_count, D).to(tl.float32)
        b = load_tile(b_ptr, others, columns, b_stride, b_count, D).to(tl.float32)
        if KERNEL == "gaussian":
            within = columns < D
            anchor = tl.load(x_ptr + columns, mask=within, other=0.0).to(tl.float32)
            b = tl.where((others < b_count)[:, None], b - anchor[None, :], 0.0)
            mean = tl.sum(b, 0) / tl.maximum(filled, 1)
            if row_block == 0:
                tl.store(means_ptr + columns, mean, mask=within)
            b = tl.where((others < b_count)[:, None], b - mean[None, :], 0.0)
            a = tl.where((rows < a_count)[:, None], a - anchor[None, :] - mean[None, :], 0.0)
            a_squares += sum_squares(a, INPUT_PRECISION, INTERPRET)
            b_squares += sum_squares(b, INPUT_PRECISION, INTERPRET)
        total = dot(a, tl.trans(b), total, INPUT_PRECISION, INTERPRET)
    if KERNEL == "gaussian":
        total -= 0.5 * (a_squares[:, None] + b_squares[None, :])
        if row_block == 0:
            slot = (element * slices + piece) * column_blocks + column_block
            tl.store(spreads_ptr + slot, tl.sum(b_squares, 0))
    a_inside, b_inside = rows < tl.where(a_is_x, N, M), others < tl.where(b_is_x, N, M)
    stacked = tl.where(a_is_x, rows, N + rows) - first_row
    offsets = ((element * slices + piece) * R + stacked)[:, None] * (N + M)
    offsets += tl.where(b_is_x, others, N + others)[None, :]
    tl.store(partial_ptr + offsets, total, mask=a_inside[:, None] & b_inside[None, :])


@triton.jit
def compute_spread(
    means_ptr,
    spreads_ptr,
    x_count,
    y_count,
    total_rows,
    D,
    slices,
    x_column_blocks,
    column_blocks,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum of squared distances of all rows from their mean, from those of blocks of rows."""
    spread = tl.sum(tl.zeros((BLOCK_D,), tl.float32), 0)
    for first in range(0, slices * column_blocks, BLOCK_D):
        slots = first + tl.arange(0, BLOCK_D)
        inside = slots < slices * column_blocks
        spread += tl.sum(tl.load(spreads_ptr + slots, mask=inside, other=0.0), 0)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        mean = tl.zeros((BLOCK_D,), tl.float32)
        between = tl.zeros((BLOCK_D,), tl.float32)
        # the mean of the blocks so far and the spread of their means, by Welford's recurrence
        rows = 0
        for block in tl.range(column_blocks, loop_unroll_factor=4):
            of_x = tl.minimum(tl.maximum(x_count - block * BLOCK_N, 0), BLOCK_N)
            y_start = (block - x_column_blocks) * BLOCK_N
            of_y = tl.minimum(tl.maximum(y_count - y_start, 0), BLOCK_N)
            filled = tl.where(block < x_column_blocks, of_x, of_y)
            block_mean = tl.load(means_ptr + block * D + columns, mask=columns < D, other=0.0)
            change = block_mean - mean
            share = filled.to(tl.float32) / tl.maximum(rows + filled, 1).to(tl.float32)
            between += change * change * (rows * share)
            mean += change * share
            rows += filled
        spread += tl.sum(between, 0)
    return spread


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_split_weights_kernel(
    partial_ptr,  # (C, slices, R, N + M)
    means_ptr,  # (C, column_blocks, D)
    spreads_ptr,  # (C, slices, column_blocks)
    bandwidth_ptr,  # one number, or one per batch element; not read unless HAS_BANDWIDTH
    x_lengths_ptr,
    y_lengths_ptr,
    weights_ptr,  # (C, R, N + M), rows weights_stride apart, the M columns at first_y_column:
    # weight of each point in the gradient of each row
    totals_ptr,  # (C, row_blocks) float64: shares of MMD^2, valid if R is N + M
    parameters,
    bandwidth_step,
    N,
    M,
    D,
    weights_stride,
    first_y_column,
    first_row,
    R,
    slices,
    row_blocks,
    x_column_blocks,
    column_blocks,
    PDL: tl.constexpr,
    HAS_X_LENGTHS: tl.constexpr,
    HAS_Y_LENGTHS: tl.constexpr,
    MEAN_BANDWIDTH: tl.constexpr,
    HAS_BANDWIDTH: tl.constexpr,
    UNBIASED: tl.constexpr,
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Weights and share of MMD^2 of a few rows, from the slices added in order."""
    wait_for_launch_before(PDL)
    let_next_launch_start(PDL)
    program = tl.program_id(0).to(tl.int64)
    element, row_block = program // row_blocks, (program % row_blocks).to(tl.int32)
    x_count, n = count_rows(x_lengths_ptr, element, N, HAS_X_LENGTHS)
    y_count, m = count_rows(y_lengths_ptr, element, M, HAS_Y_LENGTHS)
    total_rows = (n + m).to(tl.float32)
    spread = total_rows
    if MEAN_BANDWIDTH:
        spread = compute_spread(
            means_ptr + element * column_blocks * D, spreads_ptr + element * slices * column_blocks,
            x_count, y_count, total_rows, D, slices, x_column_blocks, column_blocks, BLOCK_N,
            BLOCK_D,
        )  # fmt: skip
    inverse_bandwidth = invert_bandwidth(
        bandwidth_ptr + element * bandwidth_step, spread, total_rows, MEAN_BANDWIDTH, HAS_BANDWIDTH
    )
    own = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    rows, others = first_row + own, tl.arange(0, BLOCK_K)
    row_is_x, other_is_x = rows < N, others < N
    inside = (own < R)[:, None] & (others < N + M)[None, :]
    offsets = own.to(tl.int64)[:, None] * (N + M) + others[None, :]
    products = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
    for piece in tl.range(slices, loop_unroll_factor=4):
        slice_ptr = partial_ptr + (element * slices + piece) * R * (N + M)
        products += tl.load(slice_ptr + offsets, mask=inside, other=0.0)
    row_counts = tl.where(row_is_x, rows < x_count, rows - N < y_count)
    other_counts = tl.where(other_is_x, others < x_count, others - N < y_count)
    keep = inside & row_counts[:, None] & other_counts[None, :]
    if KERNEL == "gaussian" or UNBIASED:
        keep = keep & (rows[:, None] != others[None, :])
    zero_rows, zero_others = tl.zeros((BLOCK_R,), tl.float32), tl.zeros((BLOCK_K,), tl.float32)
    k, slope = kernel_and_slope(
        products, zero_rows, zero_others, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    # an invalid length is NaN, and the gradients of both samples must show it
    nothing = (n + m) * 0.0
    x_share = (1.0 / (n * (n - 1.0 if UNBIASED else n)) + nothing).to(tl.float32)
    y_share = (1.0 / (m * (m - 1.0 if UNBIASED else m)) + nothing).to(tl.float32)
    same = row_is_x[:, None] == other_is_x[None, :]
    share = tl.where(row_is_x, x_share, y_share)[:, None]
    share = tl.where(same, share, -(1.0 / (n * m)).to(tl.float32))
    total = tl.sum(tl.sum(k * share, 1).to(tl.float64), 0)
    tl.store(totals_ptr + element * row_blocks + row_block, total)
    weights = slope * share * 2.0
    if KERNEL == "gaussian":
        # the diagonal, which is masked, takes the weight of the row itself: then the gradient is a
        # product, and of rows that add to zero whatever the origin of the points
        diagonal = rows[:, None] == others[None, :]
        weights = tl.where(diagonal, weights - tl.sum(weights, 1)[:, None], weights)
    weights_ptr += element * R * weights_stride
    columns = others + tl.where(other_is_x, 0, first_y_column - N)
    offsets = own.to(tl.int64)[:, None] * weights_stride + columns[None, :]
    tl.store(weights_ptr + offsets, weights, mask=inside)
