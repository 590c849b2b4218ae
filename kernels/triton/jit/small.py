"""Few rows, many batch elements: value and gradient of a block of rows in one program.

``own`` is the sample whose gradient is wanted, ``other`` the other one. A program sees all rows of
a batch element, so each chunk of columns is centred exactly where it is read: no pre-pass.
"""

import triton
import triton.language as tl

from .common import dot, kept_pairs, kernel_and_slope, load_tile
from .prepass import row_count


@triton.jit
def load_chunk(sides, start, BLOCK_D: tl.constexpr, CENTRE: tl.constexpr, SINGLE: tl.constexpr):
    """Some columns of both samples and of the program's rows, less the mean if CENTRE."""
    other_ptr, own_ptr, others, owns, rows = sides[0], sides[1], sides[2], sides[3], sides[4]
    other_row_stride, own_row_stride, other_count, own_count = (
        sides[5],
        sides[6],
        sides[7],
        sides[8],
    )
    D, total_rows = sides[9], sides[10]
    columns = start + tl.arange(0, BLOCK_D)
    other = load_tile(other_ptr, others, columns, other_row_stride, other_count, D).to(tl.float32)
    own = load_tile(own_ptr, owns, columns, own_row_stride, own_count, D).to(tl.float32)
    block = own
    if not SINGLE:
        block = load_tile(own_ptr, rows, columns, own_row_stride, own_count, D).to(tl.float32)
    if CENTRE:
        # less one row first: equal rows become exact zeros, and the mean is accurate
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
def rounded_squares(tile, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """Squared norms of the rows as ``dot`` sees them, so that distances are those of points."""
    if PRECISION == "bf16" and not INTERPRET:
        tile = tile.to(tl.bfloat16).to(tl.float32)
    return tl.sum(tile * tile, 1)


@triton.jit
def inverse_of_bandwidth(
    bandwidth_ptr,
    spread,
    total_rows,
    MEAN_BANDWIDTH: tl.constexpr,
    HAS_BANDWIDTH: tl.constexpr,
):
    """One over the bandwidth: of the mean rule, or as given (NaN if impossible), or 1."""
    bandwidth = total_rows * 0.0 + 1.0
    if MEAN_BANDWIDTH:
        bandwidth = 2.0 * spread / (total_rows - 1.0)
        # zero only if all rows are equal: every distance is then zero, whatever divides it
        bandwidth = tl.where(bandwidth == 0.0, 1.0, bandwidth)
    if HAS_BANDWIDTH:
        given = tl.load(bandwidth_ptr).to(tl.float32)
        bandwidth = tl.where((given > 0.0) & (given < float("inf")), given, float("nan"))
    return 1.0 / bandwidth


@triton.jit
def grams(
    sides,
    CENTRE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products of the program's rows with all rows, and squared norms of them all."""
    cross = tl.zeros((BLOCK_M, BLOCK_OTHER), tl.float32)
    within = tl.zeros((BLOCK_M, BLOCK_OWN), tl.float32)
    other_squares = tl.zeros((BLOCK_OTHER,), tl.float32)
    own_squares = tl.zeros((BLOCK_OWN,), tl.float32)
    row_squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, sides[9], BLOCK_D):
        other, own, block = load_chunk(sides, start, BLOCK_D, CENTRE, BLOCK_M == BLOCK_OWN)
        cross = dot(block, tl.trans(other), cross, PRECISION, INTERPRET)
        within = dot(block, tl.trans(own), within, PRECISION, INTERPRET)
        other_squares += rounded_squares(other, PRECISION, INTERPRET)
        own_squares += rounded_squares(own, PRECISION, INTERPRET)
        row_squares += rounded_squares(block, PRECISION, INTERPRET)
    return cross, within, other_squares, own_squares, row_squares


@triton.jit
def store_gradient(
    gradient_ptr,
    sides,
    cross_weights,
    within_weights,
    OWN_ROWS,
    CENTRE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Weights of all pairs of the program's rows, times the points, read once more."""
    rows, D = sides[4], sides[9]
    row_weights = tl.sum(cross_weights, 1) + tl.sum(within_weights, 1)
    for start in range(0, D, BLOCK_D):
        other, own, block = load_chunk(sides, start, BLOCK_D, CENTRE, BLOCK_M == BLOCK_OWN)
        pull = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if CENTRE:
            # a Gaussian depends on a - b alone: a row is pulled by differences
            pull -= row_weights[:, None] * block
        pull = dot(cross_weights, other, pull, PRECISION, INTERPRET)
        pull = dot(within_weights, own, pull, PRECISION, INTERPRET)
        columns = start + tl.arange(0, BLOCK_D)
        offsets = rows.to(tl.int64)[:, None] * D + columns[None, :]
        inside = (rows < OWN_ROWS)[:, None] & (columns < D)[None, :]
        tl.store(gradient_ptr + offsets, pull, mask=inside)


@triton.jit
def mean_of(k, pairs):
    """Sum of a tile over ``pairs``; rows are added in float64."""
    return tl.sum(tl.sum(k, 1).to(tl.float64), 0) / pairs


@triton.jit
def small_kernel(
    other_ptr,  # (C, N, D), rows other_row_stride apart
    own_ptr,  # (C, M, D)
    other_lengths_ptr,  # (C,) integers
    own_lengths_ptr,
    bandwidth_ptr,  # one number, or one per batch element; not read unless HAS_BANDWIDTH
    gradient_ptr,  # (C, M, D) float32: d MMD^2 / d own
    inverse_bandwidth_ptr,  # (C,) float32
    totals_ptr,  # (C, slots) float64: shares of MMD^2, from first_slot on, one per block of rows
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
    VALUE: tl.constexpr,  # "none", "within": pairs within own, or "all": those with other as well
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows of ``own``: their Gram matrix with all rows, then their gradient and share of MMD^2."""
    CENTRE: tl.constexpr = KERNEL == "gaussian"
    program = tl.program_id(0).to(tl.int64)
    element, row_block = program // row_blocks, (program % row_blocks).to(tl.int32)
    other_count, n = row_count(other_lengths_ptr, element, OTHER_ROWS, HAS_OTHER_LENGTHS)
    own_count, m = row_count(own_lengths_ptr, element, OWN_ROWS, HAS_OWN_LENGTHS)
    total_rows = (n + m).to(tl.float32)
    others, owns = tl.arange(0, BLOCK_OTHER), tl.arange(0, BLOCK_OWN)
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    sides = (
        other_ptr + element * other_class_stride, own_ptr + element * own_class_stride,
        others, owns, rows, other_row_stride, own_row_stride, other_count, own_count, D, total_rows,
    )  # fmt: skip
    cross, within, other_squares, own_squares, row_squares = grams(
        sides, CENTRE, PRECISION, INTERPRET, BLOCK_M, BLOCK_OTHER, BLOCK_OWN, BLOCK_D
    )
    spread = tl.sum(other_squares, 0) + tl.sum(own_squares, 0)
    inverse_bandwidth = inverse_of_bandwidth(
        bandwidth_ptr + element * bandwidth_step, spread, total_rows, MEAN_BANDWIDTH, HAS_BANDWIDTH
    )
    if row_block == 0:
        tl.store(inverse_bandwidth_ptr + element, inverse_bandwidth)
    keep = kept_pairs(rows, others, own_count, other_count, 0, KERNEL, UNBIASED)
    cross, cross_weights = kernel_and_slope(
        cross, row_squares, other_squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    keep = kept_pairs(rows, owns, own_count, own_count, 1, KERNEL, UNBIASED)
    within, within_weights = kernel_and_slope(
        within, row_squares, own_squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    within_pairs = m * (m - 1.0 if UNBIASED else m)
    if VALUE != "none":
        total = mean_of(within, within_pairs)
        if VALUE == "all":
            total -= 2.0 * mean_of(cross, n * m)
        tl.store(totals_ptr + element * slots + first_slot + row_block, total)
    store_gradient(
        gradient_ptr + element * OWN_ROWS * D, sides,
        cross_weights * (-2.0 / (n * m)).to(tl.float32),
        within_weights * (2.0 / within_pairs).to(tl.float32),
        OWN_ROWS, CENTRE, PRECISION, INTERPRET, BLOCK_M, BLOCK_OWN, BLOCK_D,
    )  # fmt: skip


@triton.jit
def small_within_kernel(
    points_ptr,  # (C, N, D), rows row_stride apart
    lengths_ptr,  # (C,) integers
    inverse_bandwidth_ptr,  # (C,) float32
    totals_ptr,  # (C, slots) float64: shares of MMD^2, from first_slot on, one per block of rows
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
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows of the sample without a gradient: their share of MMD^2, once the bandwidth is known."""
    program = tl.program_id(0).to(tl.int64)
    element, row_block = program // row_blocks, (program % row_blocks).to(tl.int32)
    count, n = row_count(lengths_ptr, element, ROWS, HAS_LENGTHS)
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
            # distances do not depend on the origin: the mean of this sample will do
            anchor = tl.load(points_ptr + columns, mask=columns < D, other=0.0)
            anchor = anchor.to(tl.float32)[None, :]
            valid = (all_rows < count)[:, None]
            points = tl.where(valid, points - anchor, 0.0)
            mean = (tl.sum(points, 0) / n.to(tl.float32))[None, :]
            points = tl.where(valid, points - mean, 0.0)
            block = tl.where((rows < count)[:, None], (block - anchor) - mean, 0.0)
        gram = dot(block, tl.trans(points), gram, PRECISION, INTERPRET)
        squares += rounded_squares(points, PRECISION, INTERPRET)
        row_squares += rounded_squares(block, PRECISION, INTERPRET)
    inverse_bandwidth = tl.load(inverse_bandwidth_ptr + element)
    keep = kept_pairs(rows, all_rows, count, count, 1, KERNEL, UNBIASED)
    k, _ = kernel_and_slope(
        gram, row_squares, squares, keep, inverse_bandwidth, parameters, KERNEL, ORDER
    )
    total = mean_of(k, n * (n - 1.0 if UNBIASED else n))
    tl.store(totals_ptr + element * slots + first_slot + row_block, total)
