"""The small family: many batch elements of few rows; one program does all for a block of rows.

``own`` is the sample whose gradient is requested, ``other`` the other one. A program reads all rows
of a batch element, so it centres each chunk of columns itself: no pre-pass.
"""

import triton
import triton.language as tl

from .common import (
    UNSPECIALIZED,
    count_rows,
    dot,
    invert_bandwidth,
    kernel_and_slope,
    load_tile,
    mask_pairs,
    sum_squares,
)


@triton.jit
def load_chunk(samples, start, BLOCK_D: tl.constexpr, CENTRE: tl.constexpr, SINGLE: tl.constexpr):
    """Load columns of both samples and of the program's rows, less the mean if CENTRE."""
    other_ptr, own_ptr, others, owns, rows = (
        samples[0],
        samples[1],
        samples[2],
        samples[3],
        samples[4],
    )
    other_row_stride, own_row_stride, other_count, own_count = (
        samples[5],
        samples[6],
        samples[7],
        samples[8],
    )
    D, total_rows = samples[9], samples[10]
    columns = start + tl.arange(0, BLOCK_D)
    other = load_tile(other_ptr, others, columns, other_row_stride, other_count, D).to(tl.float32)
    own = load_tile(own_ptr, owns, columns, own_row_stride, own_count, D).to(tl.float32)
    block = own
    if not SINGLE:
        block = load_tile(own_ptr, rows, columns, own_row_stride, own_count, D).to(tl.float32)
    if CENTRE:
        # subtract one row first: equal rows become exact zeros, and the mean is accurate
        anchor = tl.load(own_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
        is_other, is_own = (others < other_count)[:, None], (owns < own_count)[:, None]
        other = tl.where(is_other, other - anchor, 0.0)
        own = tl.where(is_own, own - anchor, 0.0)
        mean = ((tl.sum(other, 0) + tl.sum(own, 0)) / total_rows)[None, :]
        other = tl.where(is_other, other - mean, 0.0)
        own = tl.where(is_own, own - mean, 0.0)
        moved = tl.where((rows < own_count)[:, None], block - anchor - mean, 0.0)
        block = own if SINGLE else moved
    return other, own, block


@triton.jit
def compute_grams(
    samples,
    CENTRE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gram matrices of the program's rows with all rows, and squared norms of all rows."""
    cross = tl.zeros((BLOCK_M, BLOCK_OTHER), tl.float32)
    within = tl.zeros((BLOCK_M, BLOCK_OWN), tl.float32)
    other_squares = tl.zeros((BLOCK_OTHER,), tl.float32)
    own_squares = tl.zeros((BLOCK_OWN,), tl.float32)
    row_squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, samples[9], BLOCK_D):
        other, own, block = load_chunk(samples, start, BLOCK_D, CENTRE, BLOCK_M == BLOCK_OWN)
        cross = dot(block, tl.trans(other), cross, INPUT_PRECISION, INTERPRET)
        within = dot(block, tl.trans(own), within, INPUT_PRECISION, INTERPRET)
        other_squares += sum_squares(other, INPUT_PRECISION, INTERPRET)
        own_squares += sum_squares(own, INPUT_PRECISION, INTERPRET)
        row_squares += sum_squares(block, INPUT_PRECISION, INTERPRET)
    return cross, within, other_squares, own_squares, row_squares


@triton.jit
def store_gradient(
    gradient_ptr,
    samples,
    cross_weights,
    within_weights,
    OWN_ROWS,
    CENTRE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Multiply the weights of all pairs with the points, which are read a second time."""
    rows, D = samples[4], samples[9]
    row_weights = tl.sum(cross_weights, 1) + tl.sum(within_weights, 1)
    for start in range(0, D, BLOCK_D):
        other, own, block = load_chunk(samples, start, BLOCK_D, CENTRE, BLOCK_M == BLOCK_OWN)
        gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if CENTRE:
            # a Gaussian depends on a - b alone: its gradient is a sum of weighted differences
            gradient -= row_weights[:, None] * block
        gradient = dot(cross_weights, other, gradient, INPUT_PRECISION, INTERPRET)
        gradient = dot(within_weights, own, gradient, INPUT_PRECISION, INTERPRET)
        columns = start + tl.arange(0, BLOCK_D)
        offsets = rows.to(tl.int64)[:, None] * D + columns[None, :]
        inside = (rows < OWN_ROWS)[:, None] & (columns < D)[None, :]
        tl.store(gradient_ptr + offsets, gradient, mask=inside)


@triton.jit
def average(k, pairs):
    """Sum of a tile divided by ``pairs``; rows are added in float64."""
    return tl.sum(tl.sum(k, 1).to(tl.float64), 0) / pairs


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_small_gradient_kernel(
    other_ptr,  # (C, N, D), rows other_row_stride apart
    own_ptr,  # (C, M, D)
    other_lengths_ptr,  # (C,) integers
    own_lengths_ptr,
    bandwidth_ptr,  # one number, or one per batch element; not read unless HAS_BANDWIDTH
    gradient_ptr,  # (C, M, D) float32: d MMD^2 / d own
    inverse_bandwidth_ptr,  # (C,) float32
    totals_ptr,  # (C, slots) float64: shares of MMD^2, one per row block, from first_slot on
    parameters,
    other_class_stride,
    other_row_stride,
    own_class_stride,
    own_row_stride,
    bandwidth_step,
    OTHER_ROWS,
    OWN_ROWS,
    D,
    row_blocks,
    slots,
    first_slot,
    HAS_OTHER_LENGTHS: tl.constexpr,
    HAS_OWN_LENGTHS: tl.constexpr,
    MEAN_BANDWIDTH: tl.constexpr,
    HAS_BANDWIDTH: tl.constexpr,
    UNBIASED: tl.constexpr,
    VALUE_TERMS: tl.constexpr,  # "none", "within": own pairs, or "all": pairs with other as well
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gram matrices of a block of own rows, then its gradient and its share of MMD^2."""
    CENTRE: tl.constexpr = KERNEL == "gaussian"
    program = tl.program_id(0).to(tl.int64)
    element, row_block = program // row_blocks, (program % row_blocks).to(tl.int32)
    other_count, n = count_rows(other_lengths_ptr, element, OTHER_ROWS, HAS_OTHER_LENGTHS)
    own_count, m = count_rows(own_lengths_ptr, element, OWN_ROWS, HAS_OWN_LENGTHS)
    total_rows = (n + m).to(tl.float32)
    others, owns = tl.arange(0, BLOCK_OTHER), tl.arange(0, BLOCK_OWN)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    samples = (
        other_ptr + element * other_class_stride, own_ptr + element * own_class_stride,
        others, owns, rows, other_row_stride, own_row_stride, other_count, own_count, D, total_rows,
    )  # fmt: skip
    cross, within, other_squares, own_squares, row_squares = compute_grams(
        samples, CENTRE, INPUT_PRECISION, INTERPRET, BLOCK_M, BLOCK_OTHER, BLOCK_OWN, BLOCK_D
    )
    spread = tl.sum(other_squares, 0) + tl.sum(own_squares, 0)
    inverse_bandwidth = invert_bandwidth(
        bandwidth_ptr + element * bandwidth_step, spread, total_rows, MEAN_BANDWIDTH, HAS_BANDWIDTH
    )
    if row_block == 0:
        tl.store(inverse_bandwidth_ptr + element, inverse_bandwidth)
    keep = mask_pairs(rows, others, own_count, other_count, 0, KERNEL, UNBIASED)
    cross, cross_weights = kernel_and_slope(
        cross, row_squares, other_squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    keep = mask_pairs(rows, owns, own_count, own_count, 1, KERNEL, UNBIASED)
    within, within_weights = kernel_and_slope(
        within, row_squares, own_squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    within_pairs = m * (m - 1.0 if UNBIASED else m)
    if VALUE_TERMS != "none":
        total = average(within, within_pairs)
        if VALUE_TERMS == "all":
            total -= 2.0 * average(cross, n * m)
        tl.store(totals_ptr + element * slots + first_slot + row_block, total)
    store_gradient(
        gradient_ptr + element * OWN_ROWS * D, samples,
        cross_weights * (-2.0 / (n * m)).to(tl.float32),
        within_weights * (2.0 / within_pairs).to(tl.float32),
        OWN_ROWS, CENTRE, INPUT_PRECISION, INTERPRET, BLOCK_M, BLOCK_OWN, BLOCK_D,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_small_within_kernel(
    points_ptr,  # (C, N, D), rows row_stride apart
    lengths_ptr,  # (C,) integers
    inverse_bandwidth_ptr,  # (C,) float32
    totals_ptr,  # (C, slots) float64: shares of MMD^2, one per row block, from first_slot on
    parameters,
    class_stride,
    row_stride,
    ROWS,
    D,
    row_blocks,
    slots,
    first_slot,
    HAS_LENGTHS: tl.constexpr,
    UNBIASED: tl.constexpr,
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Share of MMD^2 of a block of rows of the sample without a gradient; reads the bandwidth."""
    program = tl.program_id(0).to(tl.int64)
    element, row_block = program // row_blocks, (program % row_blocks).to(tl.int32)
    count, n = count_rows(lengths_ptr, element, ROWS, HAS_LENGTHS)
    points_ptr += element * class_stride
    rows, all_rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    gram = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    row_squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        points = load_tile(points_ptr, all_rows, columns, row_stride, count, D)
        block = load_tile(points_ptr, rows, columns, row_stride, count, D)
        points, block = points.to(tl.float32), block.to(tl.float32)
        if KERNEL == "gaussian":
            # distances do not depend on the origin: the mean of this sample suffices
            anchor = tl.load(points_ptr + columns, mask=columns < D, other=0.0)
            anchor = anchor.to(tl.float32)[None, :]
            valid = (all_rows < count)[:, None]
            points = tl.where(valid, points - anchor, 0.0)
            mean = (tl.sum(points, 0) / n.to(tl.float32))[None, :]
            points = tl.where(valid, points - mean, 0.0)
            block = tl.where((rows < count)[:, None], (block - anchor) - mean, 0.0)
        gram = dot(block, tl.trans(points), gram, INPUT_PRECISION, INTERPRET)
        squares += sum_squares(points, INPUT_PRECISION, INTERPRET)
        row_squares += sum_squares(block, INPUT_PRECISION, INTERPRET)
    inverse_bandwidth = tl.load(inverse_bandwidth_ptr + element)
    keep = mask_pairs(rows, all_rows, count, count, 1, KERNEL, UNBIASED)
    k, _ = kernel_and_slope(
        gram, row_squares, squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    total = average(k, n * (n - 1.0 if UNBIASED else n))
    tl.store(totals_ptr + element * slots + first_slot + row_block, total)
