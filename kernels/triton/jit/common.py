"""Jit helpers that every kernel family shares, and the rules that all kernels here follow.

- Files in this folder hold ``@triton.jit`` functions only. The launcher of the same name, one
  folder up, allocates memory and chooses the grid; ``families.py`` chooses the family by shape.
- Grids have one dimension, which the kernel decomposes: ``tl.program_id(0).to(tl.int64)`` before
  any product, so that offsets do not overflow. Kernels take raw pointers (Triton 3.9 removed block
  pointers) and mask every axis: masked elements read as zero and are not written, so that no input
  is padded.
- Every output and all workspace comes from ``workspace.empty``, and kernels write all of it. No
  atomics: each program writes slots of its own, and slots are added in a fixed order. Results are
  therefore bitwise equal from run to run.
- Launchers pass every argument by keyword.
- Triton compiles a kernel again for an integer that is one or a multiple of 16, and for a pointer
  that is a multiple of 16 bytes. That pays for columns and strides alone: ``UNSPECIALIZED`` names
  the other arguments, so that new numbers of rows or batch elements compile nothing.
- ``INPUT_PRECISION`` is how tiles are multiplied: "ieee", "tf32x3", "bf16x3" (Triton's
  ``input_precision``) or "bf16" (operands rounded once).
- ``INTERPRET`` is true in Triton's interpreter, which multiplies the bit patterns of bfloat16 and
  has no three-pass products. There every product is plain float32: the interpreter shows errors of
  indexing and algebra, not of precision.
- ``KERNEL`` is "gaussian" or "polynomial". Its numbers are ``parameters``, a tuple of floats, and
  ``ORDER``. For a Gaussian, ``parameters`` are reciprocal scales, each of which stands for
  ``ORDER`` scales, every one half as wide as the one before. For a polynomial, ``parameters`` are
  ``(gamma, coef0)`` and ``ORDER`` is the degree.
- ``inverse_bandwidth`` is one number per batch element; 1 if the scales include the bandwidth.
- A Gaussian is computed and summed as ``k - k(0)``, because the constant cancels in MMD^2.
"""

import triton
import triton.language as tl

UNSPECIALIZED = (
    *("N", "M", "A", "B", "R", "ROWS", "OTHER_ROWS", "OWN_ROWS"),
    *("first_row", "first_row_block", "row_blocks", "all_row_blocks", "chunk_rows"),
    *("rows", "pieces", "piece_steps"),
    *("x_row_blocks", "x_column_blocks", "column_blocks", "blocks", "blocks_x"),
    *("chunks", "chunks_x", "slices", "slice_steps", "slots", "first_slot"),
    *("slots_x", "slots_y", "slots_between", "x_step", "y_step", "between_step"),
    *("tiles", "tiles_each", "a_sample", "b_sample", "a_squares_step", "b_squares_step"),
    *("bandwidth_step", "bandwidth_ptr", "inverse_bandwidth_ptr", "pairs_ptr", "counts_ptr"),
    *("squares_ptr", "a_squares_ptr", "b_squares_ptr", "lengths_ptr"),
    *("x_lengths_ptr", "y_lengths_ptr", "other_lengths_ptr", "own_lengths_ptr"),
    *("within_x_ptr", "within_y_ptr", "between_ptr"),
)


@triton.jit
def wait_for_launch_before(PDL: tl.constexpr):
    """Wait until the launch before has written everything.

    With PDL (programmatic dependent launch, ``Call.bind_chain``) a kernel may start while the one
    before it still runs: all that it reads and writes must come after this.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_launch_start(PDL: tl.constexpr):
    """Let the next launch start once every program has come here; for one that waits, as ours."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def dot(a, b, accumulator, INPUT_PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """``accumulator + a @ b`` in float32."""
    if INTERPRET:
        total = tl.dot(
            a.to(tl.float32), b.to(tl.float32), accumulator.to(tl.float32), input_precision="ieee"
        )
    elif INPUT_PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), accumulator)
    else:
        total = tl.dot(
            a.to(tl.float32), b.to(tl.float32), accumulator, input_precision=INPUT_PRECISION
        )
    return total


@triton.jit
def expm1_and_exp(v):
    """``exp(v) - 1`` and ``exp(v)`` for ``v <= 0``, without a branch or cancellation."""
    e = tl.exp2(v * 1.4426950408889634)
    # the Taylor series to the seventh power: relative error 7e-8 for v > -0.5
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
    """``k`` (of a Gaussian: ``k - k(0)``) and ``dk / d(a.b)`` of a tile, zero where not ``keep``.

    ``gram`` is (rows, columns), for a Gaussian of centred points, whose squared norms are
    ``row_squares`` and ``column_squares``. The compiler removes a result that the caller ignores.
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
def mask_pairs(
    rows, columns, row_count, column_count, same, KERNEL: tl.constexpr, UNBIASED: tl.constexpr
):
    """Mask of the pairs of a tile that count.

    Both rows must lie within the lengths. If rows and columns belong to one sample (``same``, a
    tensor or a constexpr), the diagonal of a Gaussian is masked: it is k(0) exactly, whatever
    distance rounding gives. A polynomial's diagonal is masked only if UNBIASED.
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
    """Load a (rows, columns) tile of a row-major matrix; zero beyond the counts."""
    mask = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def compute_gram(
    a_ptr,
    b_ptr,
    rows,
    columns,
    a_row_stride,
    b_row_stride,
    row_count,
    column_count,
    D,
    INPUT_PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``a[rows] @ b[columns].T`` in float32; zero beyond the counts."""
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, D, BLOCK_D):
        features = start + tl.arange(0, BLOCK_D)
        a = load_tile(a_ptr, rows, features, a_row_stride, row_count, D)
        b = load_tile(b_ptr, columns, features, b_row_stride, column_count, D)
        total = dot(a, tl.trans(b), total, INPUT_PRECISION, INTERPRET)
    return total


@triton.jit
def load_squares(squares_ptr, rows, row_count, KERNEL: tl.constexpr):
    """Load the squared norms of rows, which only a Gaussian needs."""
    if KERNEL == "gaussian":
        squares = tl.load(squares_ptr + rows, mask=rows < row_count, other=0.0)
    else:
        squares = tl.zeros(rows.shape, tl.float32)
    return squares


@triton.jit
def count_rows(lengths_ptr, element, SIZE, HAS_LENGTHS: tl.constexpr):
    """Number of rows that count in a batch element, as int32 and, NaN if invalid, as float64."""
    rows = SIZE
    # SIZE.to would fail: Triton makes an argument equal to one a Python constant
    given = tl.full((), SIZE, tl.float64)
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + element).to(tl.int64)
        rows = tl.minimum(tl.maximum(length, 0), SIZE).to(tl.int32)
        given = tl.where(rows == length, length.to(tl.float64), float("nan"))
        given = tl.where(length >= 1, given, float("nan"))
    return rows, given


@triton.jit
def sum_squares(tile, INPUT_PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """Squared norms of rows as rounded by ``dot``, so that distances are those of real points."""
    if INPUT_PRECISION == "bf16" and not INTERPRET:
        tile = tile.to(tl.bfloat16).to(tl.float32)
    return tl.sum(tile * tile, 1)


@triton.jit
def invert_bandwidth(
    bandwidth_ptr,
    spread,
    total_rows,
    MEAN_BANDWIDTH: tl.constexpr,
    HAS_BANDWIDTH: tl.constexpr,
):
    """Reciprocal of the mean bandwidth, or of a given one (NaN if invalid); otherwise 1."""
    bandwidth = total_rows * 0.0 + 1.0
    if MEAN_BANDWIDTH:
        bandwidth = 2.0 * spread / (total_rows - 1.0)
        # zero only if all rows are equal; every distance is then zero, whatever the divisor
        bandwidth = tl.where(bandwidth == 0.0, 1.0, bandwidth)
    if HAS_BANDWIDTH:
        given = tl.load(bandwidth_ptr).to(tl.float32)
        bandwidth = tl.where((given > 0.0) & (given < float("inf")), given, float("nan"))
    return 1.0 / bandwidth
