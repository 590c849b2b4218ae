"""Jit helpers that every family of kernels shares.

The rules of all files here:

- They hold ``@triton.jit`` functions only. What is allocated, and how many programs run, is the
  business of the file of the same name beside this folder; which family serves a shape is data in
  ``families.py``.
- One-dimensional grids, taken apart by the kernel: ``tl.program_id(0).to(tl.int64)`` before any
  product. Raw pointers only (block pointers left Triton with 3.9), a mask on every axis, no copies
  to pad a tail. A masked element reads as zero and is not written.
- Every output and all scratch is allocated by ``workspace.empty`` and fully written. No atomics: a
  program owns the slots it writes, and slots are added in a fixed order, so results are bitwise
  equal from run to run.
- Constexprs are passed by keyword. ``INTERPRET`` is one of them everywhere: Triton's interpreter
  multiplies the bit patterns of bfloat16 and knows no three-pass products, so there products are
  plain float32. It shows errors of indexing and algebra, not of precision.
- ``KERNEL`` is "gaussian" or "polynomial". ``parameters`` is a tuple of floats and ``ORDER`` a
  constexpr: for a Gaussian the reciprocal scales, each followed by ``ORDER - 1`` scales half as
  wide, and for a polynomial ``(gamma, coef0)`` and the degree.
- ``inverse_bandwidth`` is a number per batch element, 1 where the scales hold the bandwidth. A
  Gaussian is given, and summed, as ``k - k(0)``: the constant cancels in MMD^2.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """``accumulator + a @ b``, PRECISION being "ieee", "tf32x3", "bf16x3" or "bf16"."""
    if INTERPRET:
        total = tl.dot(
            a.to(tl.float32), b.to(tl.float32), accumulator.to(tl.float32), input_precision="ieee"
        )
    elif PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), accumulator)
    else:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision=PRECISION)
    return total


@triton.jit
def expm1_and_exp(v):
    """``exp(v) - 1`` and ``exp(v)`` for ``v <= 0``, without a branch and without cancellation."""
    e = tl.exp2(v * 1.4426950408889634)
    # the Taylor series to the seventh power: 7e-8 relative where it is used
    series = 1.0 / 720 + v * (1.0 / 5040)
    series = 1.0 / 24 + v * (1.0 / 120 + v * series)
    series = v * (1.0 + v * (0.5 + v * (1.0 / 6 + v * series)))
    return tl.where(v > -0.5, series, e - 1.0), e


@triton.jit
def gaussian_mixture(squared, inverse_bandwidth, rates, ORDER: tl.constexpr):
    """``k - k(0)`` and ``dk / d(a.b)`` from squared distances.

    One exponential serves ``ORDER`` scales: halving a scale squares ``exp`` and takes ``expm1`` to
    ``e (e + 2)``, which loses no digits.
    """
    k = tl.zeros_like(squared)
    slope = tl.zeros_like(squared)
    for at in tl.static_range(len(rates)):
        rate = inverse_bandwidth * rates[at]
        below, e = expm1_and_exp(-squared * rate)
        weight = 2.0 * rate
        for _ in tl.static_range(ORDER):
            k += below
            slope += weight * e
            below = below * (below + 2.0)
            e = e * e
            weight = weight * 2.0
    return k, slope


@triton.jit
def polynomial(gram, parameters, ORDER: tl.constexpr):
    """``k`` and ``dk / d(a.b)`` from dot products."""
    base = parameters[0] * gram + parameters[1]
    lower = tl.full(gram.shape, 1.0, tl.float32)
    for _ in tl.static_range(ORDER - 1):
        lower = lower * base
    return lower * base, lower * (parameters[0] * ORDER)


@triton.jit
def kernel_and_slope(
    gram,
    row_squares,
    column_squares,
    keep,
    inverse_bandwidth,
    parameters,
    KERNEL: tl.constexpr,
    ORDER: tl.constexpr,
):
    """``k`` (a Gaussian's less k(0)) and ``dk / d(a.b)`` of a tile, zero where ``keep`` is not.

    ``gram`` is (rows, columns), of centred points for a Gaussian; ``row_squares`` and
    ``column_squares`` are their squared norms. What a caller does not use costs nothing.
    """
    if KERNEL == "gaussian":
        squared = row_squares[:, None] + column_squares[None, :] - 2.0 * gram
        # rounding can push a distance below zero; a maximum would hide NaN
        squared = tl.where(squared < 0.0, 0.0, squared)
        k, slope = gaussian_mixture(squared, inverse_bandwidth, parameters, ORDER)
    else:
        k, slope = polynomial(gram, parameters, ORDER)
    return tl.where(keep, k, 0.0), tl.where(keep, slope, 0.0)


@triton.jit
def kept_pairs(
    rows, columns, row_count, column_count, same, KERNEL: tl.constexpr, UNBIASED: tl.constexpr
):
    """Which pairs of a tile count: inside both samples and, within one, off the diagonal.

    ``same`` (a tensor or a constexpr) says that both sides are one sample. A Gaussian's diagonal is
    k(0), which is left out anyway, whatever rounding makes of the distance; a polynomial's counts
    unless UNBIASED.
    """
    keep = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    if KERNEL == "gaussian" or UNBIASED:
        keep = keep & ((rows[:, None] != columns[None, :]) | (same == 0))
    return keep


@triton.jit
def load_tile(
    pointer,
    rows,
    columns,
    row_stride,
    row_count,
    column_count,
):
    """A (rows, columns) tile of a row-major matrix, zero outside of the counts."""
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def gram_tile(
    a_ptr,
    b_ptr,
    rows,
    columns,
    a_row_stride,
    b_row_stride,
    row_count,
    column_count,
    D,
    PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``a[rows] @ b[columns].T``, float32; rows beyond the counts are zero."""
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, D, BLOCK_D):
        features = start + tl.arange(0, BLOCK_D)
        a = load_tile(a_ptr, rows, features, a_row_stride, row_count, D)
        b = load_tile(b_ptr, columns, features, b_row_stride, column_count, D)
        total = dot(a, tl.trans(b), total, PRECISION, INTERPRET)
    return total


@triton.jit
def load_squares(squares_ptr, rows, row_count, KERNEL: tl.constexpr):
    """Squared norms of rows, which only a Gaussian has."""
    if KERNEL == "gaussian":
        squares = tl.load(squares_ptr + rows, mask=rows < row_count, other=0.0)
    else:
        squares = tl.zeros(rows.shape, tl.float32)
    return squares
