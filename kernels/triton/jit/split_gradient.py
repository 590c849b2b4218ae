"""The split family, third launch: gradients from the weights that ``split.py`` writes."""

import triton
import triton.language as tl

from .common import UNSPECIALIZED, count_rows, dot, load_tile, wait_for_launch_before


@triton.jit
def add_products(
    total,
    weights_ptr,
    points_ptr,
    origin,
    rows,
    columns,
    weights_stride,
    row_stride,
    row_end,
    count,
    D,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add ``weights @ points`` to ``total``."""
    for start in range(0, count, BLOCK_K):
        others = start + tl.arange(0, BLOCK_K)
        weights = load_tile(weights_ptr, rows, others, weights_stride, row_end, count)
        points = load_tile(points_ptr, others, columns, row_stride, count, D).to(tl.float32)
        points = tl.where((others < count)[:, None], points - origin[None, :], 0.0)
        total = dot(weights, points, total, INPUT_PRECISION, INTERPRET)
    return total


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_split_gradient_kernel(
    x_ptr,
    y_ptr,
    x_lengths_ptr,
    y_lengths_ptr,
    weights_ptr,  # (C, R, N + M), rows weights_stride apart, the M columns at first_y_column
    means_ptr,  # (C, column_blocks, D)
    gradient_ptr,  # (C, N or M, D) float32
    x_class_stride,
    x_row_stride,
    y_class_stride,
    y_row_stride,
    N,
    M,
    D,
    weights_stride,
    first_y_column,
    first_row,
    R,
    row_blocks,
    column_blocks,
    OWN: tl.constexpr,  # 0: gradient in x, 1: in y
    PDL: tl.constexpr,
    HAS_X_LENGTHS: tl.constexpr,
    HAS_Y_LENGTHS: tl.constexpr,
    KERNEL: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A block of rows and columns of a gradient."""
    wait_for_launch_before(PDL)
    program = tl.program_id(0).to(tl.int64)
    rows = (program % row_blocks).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_programs = tl.cdiv(D, BLOCK_D)
    columns = (program // row_blocks % column_programs).to(tl.int32) * BLOCK_D
    columns += tl.arange(0, BLOCK_D)
    element = program // row_blocks // column_programs
    x_count, _ = count_rows(x_lengths_ptr, element, N, HAS_X_LENGTHS)
    y_count, _ = count_rows(y_lengths_ptr, element, M, HAS_Y_LENGTHS)
    x_ptr += element * x_class_stride
    y_ptr += element * y_class_stride
    origin = tl.zeros((BLOCK_D,), tl.float32)
    if KERNEL == "gaussian":
        # near the mean of x: its first row plus the mean of its first block relative to that row
        origin = tl.load(x_ptr + columns, mask=columns < D, other=0.0).to(tl.float32)
        mean = means_ptr + element * column_blocks * D + columns
        origin += tl.load(mean, mask=columns < D, other=0.0)
    size = N if OWN == 0 else M
    weights_ptr += (element * R + (0 if OWN == 0 else N) - first_row) * weights_stride
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = add_products(
        total, weights_ptr, x_ptr, origin, rows, columns, weights_stride, x_row_stride, size,
        x_count, D, INPUT_PRECISION, INTERPRET, BLOCK_K,
    )  # fmt: skip
    total = add_products(
        total, weights_ptr + first_y_column, y_ptr, origin, rows, columns, weights_stride,
        y_row_stride, size, y_count, D, INPUT_PRECISION, INTERPRET, BLOCK_K,
    )  # fmt: skip
    offsets = (element * size + rows)[:, None] * D + columns[None, :]
    tl.store(gradient_ptr + offsets, total, mask=(rows < size)[:, None] & (columns < D)[None, :])
