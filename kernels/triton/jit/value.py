"""The value family: MMD^2 without a gradient; only the sum of each tile of k is stored."""

import triton
import triton.language as tl

from .common import UNSPECIALIZED, compute_gram, kernel_and_slope, load_squares, mask_pairs


@triton.jit
def locate_tile(tile, row_blocks, column_blocks, SAME: tl.constexpr, GROUP: tl.constexpr):
    """Row block and column block of a tile number.

    Tiles are numbered in groups of GROUP row blocks, so that the points of a group stay in the
    cache. If SAME, only the lower triangle is visited: group g has GROUP rows and GROUP * (g + 1)
    columns of blocks, the last few of which lie above the diagonal.
    """
    if SAME:
        squared = GROUP * GROUP
        blocks = tile // squared
        group = ((tl.sqrt(1.0 + 8.0 * blocks.to(tl.float32)) - 1.0) * 0.5).to(tl.int64)
        # the root may be off by one
        group -= (group * (group + 1) // 2 > blocks).to(tl.int64)
        group += ((group + 1) * (group + 2) // 2 <= blocks).to(tl.int64)
        local = tile - squared * (group * (group + 1) // 2)
        column = local // GROUP
        row = group * GROUP + local % GROUP
    else:
        per_group = GROUP * tl.full((), column_blocks, tl.int64)
        group = tile // per_group
        local = tile % per_group
        # the last group may have fewer rows
        height = tl.minimum(row_blocks - group * GROUP, GROUP)
        column = local // height
        row = group * GROUP + local % height
    return row.to(tl.int32), column.to(tl.int32)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_value_sums_kernel(
    a_ptr,  # (C, A, D)
    b_ptr,  # (C, B, D), a_ptr again if SAME
    a_squares_ptr,  # (C, A); not read for a polynomial
    b_squares_ptr,
    inverse_bandwidth_ptr,  # (C,)
    counts_ptr,  # (C, 2) int32
    partial_ptr,  # (C, tiles)
    parameters,
    A,
    B,
    D,
    a_class_stride,
    a_row_stride,
    b_class_stride,
    b_row_stride,
    a_squares_step,
    b_squares_step,
    a_sample,  # 0: x, 1: y
    b_sample,
    tiles,
    SAME: tl.constexpr,  # a and b are one sample: tiles of the lower triangle
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
    UNBIASED: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Sum of k over one tile, doubled if the tile stands for its mirror image too."""
    program = tl.program_id(0).to(tl.int64)
    element = program // tiles
    row_blocks = tl.cdiv(A, BLOCK_M)
    column_blocks = tl.cdiv(B, BLOCK_N)
    row_block, column_block = locate_tile(program % tiles, row_blocks, column_blocks, SAME, GROUP)
    beyond = row_block >= row_blocks
    if SAME:
        beyond = beyond | (column_block > row_block)
    if beyond:
        tl.store(partial_ptr + program, 0.0)
    else:
        rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
        row_count = tl.load(counts_ptr + element * 2 + a_sample)
        column_count = tl.load(counts_ptr + element * 2 + b_sample)
        gram = compute_gram(
            a_ptr + element * a_class_stride,
            b_ptr + element * b_class_stride,
            rows,
            columns,
            a_row_stride,
            b_row_stride,
            row_count,
            column_count,
            D,
            INPUT_PRECISION,
            INTERPRET,
            BLOCK_D,
        )
        k, _ = kernel_and_slope(
            gram,
            load_squares(a_squares_ptr + element * a_squares_step, rows, row_count, KERNEL),
            load_squares(b_squares_ptr + element * b_squares_step, columns, column_count, KERNEL),
            mask_pairs(rows, columns, row_count, column_count, SAME, KERNEL, UNBIASED),
            tl.load(inverse_bandwidth_ptr + element),
            parameters,
            KERNEL,
            ORDER,
        )
        total = tl.sum(k)
        if SAME:
            total *= tl.where(column_block < row_block, 2.0, 1.0)
        tl.store(partial_ptr + program, total)


@triton.jit
def sum_slots(pointer, slots, BLOCK_N: tl.constexpr):
    """Sum of slots in a fixed order, float64."""
    total = tl.zeros((BLOCK_N,), tl.float64)
    for start in range(0, slots, BLOCK_N):
        offsets = start + tl.arange(0, BLOCK_N)
        total += tl.load(pointer + offsets, mask=offsets < slots, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mmd2_value_finish_kernel(
    within_x_ptr,  # (C, slots_x), batch elements x_step apart
    within_y_ptr,
    between_ptr,
    pairs_ptr,  # (C, 3) float64
    value_ptr,  # (C,) float32
    x_step,
    y_step,
    between_step,
    slots_x,
    slots_y,
    slots_between,
    BLOCK_N: tl.constexpr,
):
    """MMD^2 of one batch element from the sums of its tiles."""
    element = tl.program_id(0).to(tl.int64)
    pairs_ptr += element * 3
    value = sum_slots(within_x_ptr + element * x_step, slots_x, BLOCK_N) / tl.load(pairs_ptr)
    value += sum_slots(within_y_ptr + element * y_step, slots_y, BLOCK_N) / tl.load(pairs_ptr + 1)
    between = sum_slots(between_ptr + element * between_step, slots_between, BLOCK_N)
    value -= 2.0 * between / tl.load(pairs_ptr + 2)
    tl.store(value_ptr + element, value.to(tl.float32))
