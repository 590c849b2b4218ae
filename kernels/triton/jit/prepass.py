"""Pre-pass: centred points stacked as [x; y], their squared norms, scalars per batch element.

The points are read twice. Both passes have a program per block of rows, so that few batch elements
occupy the whole GPU too.
"""

import triton
import triton.language as tl

from .common import UNSPECIALIZED, count_rows, load_tile


@triton.jit
def sum_rows(pointer, anchor, start, end, columns, row_stride, D, BLOCK_N: tl.constexpr):
    """Sum of ``row - anchor`` over the rows from start to end, float32."""
    total = tl.zeros_like(anchor)
    for first in range(start, end, BLOCK_N):
        rows = first + tl.arange(0, BLOCK_N)
        tile = load_tile(pointer, rows, columns, row_stride, end, D).to(tl.float32)
        tile = tl.where((rows < end)[:, None], tile - anchor[None, :], 0.0)
        total += tl.sum(tile, 0)
    return total


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_prepass_sums_kernel(
    x_ptr,  # (C, N, D), rows row_stride apart
    y_ptr,  # (C, M, D)
    x_lengths_ptr,  # (C,) integers
    y_lengths_ptr,
    sums_ptr,  # (C, chunks_x + chunks_y, D) float32
    x_class_stride,
    x_row_stride,
    y_class_stride,
    y_row_stride,
    N,
    M,
    D,
    chunk_rows,
    chunks_x,
    chunks,
    HAS_X_LENGTHS: tl.constexpr,
    HAS_Y_LENGTHS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums over chunks of rows of ``row - first row of x``: equal rows give exact zeros."""
    program = tl.program_id(0).to(tl.int64)
    column_blocks = tl.cdiv(D, BLOCK_D)
    columns = (program % column_blocks).to(tl.int32) * BLOCK_D + tl.arange(0, BLOCK_D)
    chunk = (program // column_blocks % chunks).to(tl.int32)
    element = program // column_blocks // chunks
    x_ptr += element * x_class_stride
    anchor = tl.load(x_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
    if chunk < chunks_x:
        rows, _ = count_rows(x_lengths_ptr, element, N, HAS_X_LENGTHS)
        start = chunk * chunk_rows
        end = tl.minimum(start + chunk_rows, rows)
        total = sum_rows(x_ptr, anchor, start, end, columns, x_row_stride, D, BLOCK_N)
    else:
        rows, _ = count_rows(y_lengths_ptr, element, M, HAS_Y_LENGTHS)
        start = (chunk - chunks_x) * chunk_rows
        end = tl.minimum(start + chunk_rows, rows)
        y_ptr += element * y_class_stride
        total = sum_rows(y_ptr, anchor, start, end, columns, y_row_stride, D, BLOCK_N)
    slot = (element * chunks + chunk) * D
    tl.store(sums_ptr + slot + columns, total, mask=columns < D)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_prepass_stack_kernel(
    x_ptr,  # (C, N, D)
    y_ptr,  # (C, M, D)
    x_lengths_ptr,
    y_lengths_ptr,
    sums_ptr,  # (C, chunks, D), from mmd2_prepass_sums_kernel
    stacked_ptr,  # (C, N + M, D), zero beyond the lengths
    squares_ptr,  # (C, N + M): squared norms of the rows as stored
    x_class_stride,
    x_row_stride,
    y_class_stride,
    y_row_stride,
    N,
    M,
    D,
    chunks,
    blocks_x,
    blocks,
    HAS_X_LENGTHS: tl.constexpr,
    HAS_Y_LENGTHS: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """All columns of a block of rows, less the mean of both samples if CENTRE."""
    program = tl.program_id(0).to(tl.int64)
    block = (program % blocks).to(tl.int32)
    element = program // blocks
    count_x, given_x = count_rows(x_lengths_ptr, element, N, HAS_X_LENGTHS)
    count_y, given_y = count_rows(y_lengths_ptr, element, M, HAS_Y_LENGTHS)
    total_rows = (given_x + given_y).to(tl.float32)
    x_ptr += element * x_class_stride
    y_ptr += element * y_class_stride
    sums_ptr += element * chunks * D
    is_x = block < blocks_x
    rows = tl.where(is_x, block, block - blocks_x) * BLOCK_N + tl.arange(0, BLOCK_N)
    stacked_rows = element * (N + M) + tl.where(is_x, 0, N) + rows
    inside = rows < tl.where(is_x, N, M)
    valid = rows < tl.where(is_x, count_x, count_y)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        if is_x:
            tile = load_tile(x_ptr, rows, columns, x_row_stride, count_x, D).to(tl.float32)
        else:
            tile = load_tile(y_ptr, rows, columns, y_row_stride, count_y, D).to(tl.float32)
        if CENTRE:
            within = columns < D
            anchor = tl.load(x_ptr + columns, mask=within, other=0.0).to(tl.float32)
            mean = tl.zeros((BLOCK_D,), tl.float32)
            for chunk in range(chunks):
                mean += tl.load(sums_ptr + chunk * D + columns, mask=within, other=0.0)
            tile = (tile - anchor[None, :]) - (mean / total_rows)[None, :]
        tile = tl.where(valid[:, None] & (columns < D)[None, :], tile, 0.0)
        # norms of the stored, rounded values: distances are then exactly those of the stored points
        stored = tile.to(stacked_ptr.dtype.element_ty)
        rounded = stored.to(tl.float32)
        squares += tl.sum(rounded * rounded, 1)
        offsets = stacked_rows[:, None] * D + columns[None, :]
        tl.store(stacked_ptr + offsets, stored, mask=inside[:, None] & (columns < D)[None, :])
    tl.store(squares_ptr + stacked_rows, squares, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_prepass_scalars_kernel(
    squares_ptr,  # (C, N + M); not read unless MEAN_BANDWIDTH
    bandwidth_ptr,  # one number, or one per batch element; not read unless HAS_BANDWIDTH
    x_lengths_ptr,
    y_lengths_ptr,
    inverse_bandwidth_ptr,  # (C,) float32
    pairs_ptr,  # (C, 3) float64: pairs within x, within y, and between them
    counts_ptr,  # (C, 2) int32: rows of x and of y that count
    bandwidth_step,
    N,
    M,
    HAS_X_LENGTHS: tl.constexpr,
    HAS_Y_LENGTHS: tl.constexpr,
    MEAN_BANDWIDTH: tl.constexpr,
    HAS_BANDWIDTH: tl.constexpr,
    UNBIASED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Scalars that every tile of a batch element needs; NaN for invalid lengths and bandwidths."""
    element = tl.program_id(0).to(tl.int64)
    count_x, n = count_rows(x_lengths_ptr, element, N, HAS_X_LENGTHS)
    count_y, m = count_rows(y_lengths_ptr, element, M, HAS_Y_LENGTHS)
    inverse = n * 0.0 + 1.0
    if MEAN_BANDWIDTH:
        total = tl.zeros((BLOCK_N,), tl.float64)
        squares_ptr += element * (N + M)
        for start in range(0, N + M, BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N)
            squares = tl.load(squares_ptr + rows, mask=rows < N + M, other=0.0)
            total += squares.to(tl.float64)
        bandwidth = 2.0 * tl.sum(total, 0) / (n + m - 1.0)
        # zero only if all rows are equal; every distance is then zero, whatever the divisor
        inverse = 1.0 / tl.where(bandwidth == 0.0, 1.0, bandwidth)
    if HAS_BANDWIDTH:
        bandwidth = tl.load(bandwidth_ptr + element * bandwidth_step).to(tl.float64)
        usable = (bandwidth > 0.0) & (bandwidth < float("inf"))
        inverse = 1.0 / tl.where(usable, bandwidth, float("nan"))
    tl.store(inverse_bandwidth_ptr + element, inverse.to(tl.float32))
    tl.store(pairs_ptr + element * 3, n * (n - 1.0 if UNBIASED else n))
    tl.store(pairs_ptr + element * 3 + 1, m * (m - 1.0 if UNBIASED else m))
    tl.store(pairs_ptr + element * 3 + 2, n * m)
    tl.store(counts_ptr + element * 2, count_x)
    tl.store(counts_ptr + element * 2 + 1, count_y)
