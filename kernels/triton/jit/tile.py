"""The tile family: the weights of all pairs, then their product with the points; for any shape.

Rows are those of the sample whose gradient is requested ("own"), columns the stacked rows [x; y].
"""

import triton
import triton.language as tl

from .common import (
    UNSPECIALIZED,
    compute_gram,
    dot,
    kernel_and_slope,
    load_squares,
    load_tile,
    mask_pairs,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_tile_weights_kernel(
    stacked_ptr,  # (C, N + M, D)
    squares_ptr,  # (C, N + M)
    inverse_bandwidth_ptr,  # (C,)
    pairs_ptr,  # (C, 3) float64
    counts_ptr,  # (C, 2) int32
    weights_ptr,  # (C, chunk_rows, N + M): 2 / pairs * dk / d(a.b), negative between the samples
    partial_ptr,  # (C, column blocks, all row blocks): sums of k; written if VALUE
    parameters,
    N,
    M,
    D,
    row_stride,
    weights_stride,
    first_row_block,
    row_blocks,
    all_row_blocks,
    OWN: tl.constexpr,  # 0: x, 1: y
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    UNBIASED: tl.constexpr,
    VALUE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of weights and its sum of k."""
    program = tl.program_id(0).to(tl.int64)
    row_block = (program % row_blocks).to(tl.int32)
    x_blocks = tl.cdiv(N, BLOCK_N)
    column_blocks = x_blocks + tl.cdiv(M, BLOCK_N)
    column_block = (program // row_blocks % column_blocks).to(tl.int32)
    element = program // row_blocks // column_blocks
    sample = tl.where(column_block < x_blocks, 0, 1)
    size = tl.where(sample == 0, N, M)
    own_size = N if OWN == 0 else M
    rows = (first_row_block + row_block) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (column_block - sample * x_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_count = tl.load(counts_ptr + element * 2 + OWN)
    column_count = tl.load(counts_ptr + element * 2 + sample)
    own_first = element * (N + M) + OWN * N
    sample_first = element * (N + M) + sample * N
    gram = compute_gram(
        stacked_ptr + own_first * row_stride,
        stacked_ptr + sample_first * row_stride,
        rows,
        columns,
        row_stride,
        row_stride,
        row_count,
        column_count,
        D,
        INPUT_PRECISION,
        INTERPRET,
        BLOCK_D,
    )
    same = sample == OWN
    k, slope = kernel_and_slope(
        gram,
        load_squares(squares_ptr + own_first, rows, row_count, KERNEL),
        load_squares(squares_ptr + sample_first, columns, column_count, KERNEL),
        mask_pairs(rows, columns, row_count, column_count, same, KERNEL, UNBIASED),
        tl.load(inverse_bandwidth_ptr + element),
        parameters,
        KERNEL,
        ORDER,
    )
    pairs = tl.load(pairs_ptr + element * 3 + tl.where(same, OWN, 2))
    weight = (tl.where(same, 2.0, -2.0) / pairs).to(tl.float32)
    chunk_row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets = (element * row_blocks * BLOCK_M + chunk_row)[:, None] * weights_stride + (
        sample * N + columns
    )[None, :]
    inside = (rows < own_size)[:, None] & (columns < size)[None, :]
    tl.store(weights_ptr + offsets, slope * weight, mask=inside)
    if VALUE:
        slot = (element * column_blocks + column_block) * all_row_blocks
        tl.store(partial_ptr + slot + first_row_block + row_block, tl.sum(k))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_tile_gradient_kernel(
    weights_ptr,  # (C, chunk_rows, N + M), rows weights_stride apart
    stacked_ptr,  # (C, N + M, D)
    gradient_ptr,  # (pieces, C, rows, D) float32
    N,
    M,
    D,
    row_stride,
    weights_stride,
    gradient_piece_stride,
    gradient_class_stride,
    first_row,
    rows,  # of this chunk that exist
    chunk_rows,
    pieces,
    piece_steps,
    OWN: tl.constexpr,
    KERNEL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``weights @ stacked`` over a piece of the pairs; for a Gaussian less ``rowsum * own``."""
    program = tl.program_id(0).to(tl.int64)
    row_blocks = tl.cdiv(chunk_rows, BLOCK_M)
    d_blocks = tl.cdiv(D, BLOCK_D)
    local_rows = (program % row_blocks).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = (program // row_blocks % d_blocks).to(tl.int32) * BLOCK_D + tl.arange(0, BLOCK_D)
    piece = (program // row_blocks // d_blocks % pieces).to(tl.int32)
    element = program // row_blocks // d_blocks // pieces
    weights_ptr += element * chunk_rows * weights_stride
    points_ptr = stacked_ptr + element * (N + M) * row_stride
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # summed along rows once, at the end: in the loop it would exchange numbers between threads
    passed = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    first = piece * piece_steps * BLOCK_K
    for start in range(first, tl.minimum(first + piece_steps * BLOCK_K, N + M), BLOCK_K):
        pairs = start + tl.arange(0, BLOCK_K)
        weights = load_tile(weights_ptr, local_rows, pairs, weights_stride, rows, N + M)
        points = load_tile(points_ptr, pairs, features, row_stride, N + M, D)
        total = dot(weights, points, total, INPUT_PRECISION, INTERPRET)
        passed += weights
    if KERNEL == "gaussian":
        own_ptr = stacked_ptr + (element * (N + M) + OWN * N + first_row) * row_stride
        points = load_tile(own_ptr, local_rows, features, row_stride, rows, D)
        total -= tl.sum(passed, 1)[:, None] * points.to(tl.float32)
    inside = (local_rows < rows)[:, None] & (features < D)[None, :]
    gradient_ptr += piece * gradient_piece_stride + element * gradient_class_stride
    offsets = local_rows.to(tl.int64)[:, None] * D + features[None, :]
    tl.store(gradient_ptr + offsets, total, mask=inside)
