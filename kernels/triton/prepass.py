"""Launches what comes before the tiles: centred points, norms, numbers per batch element."""

from typing import NamedTuple

import triton
from torch import Tensor, float32, float64, int32
from torch import dtype as Dtype

from .call import Call, Samples
from .configs import memory_bound
from .encode import LAUNCH_OPTIONS
from .jit.prepass import elements_kernel, stacked_kernel, sums_kernel
from .workspace import empty

MAX_CHUNKS = 16  # of either sample: enough to fill a chip, few enough to add again in every block
CHUNK_ROWS = 64


class Elements(NamedTuple):
    """Numbers per batch element."""

    inverse_bandwidth: Tensor  # (C,)
    pairs: Tensor  # (C, 3) float64
    counts: Tensor  # (C, 2) int32


class Stacked(NamedTuple):
    """The rows [x; y] as tiles read them."""

    points: Tensor  # (C, N + M, D)
    squares: Tensor  # (C, N + M)


def _or_any(pointer: Tensor | None, stand_in: Tensor) -> Tensor:
    # a kernel needs some pointer, even for what a constexpr says is not there
    return stand_in if pointer is None else pointer


def stack(samples: Samples, dtype: Dtype, *, centre: bool) -> Stacked:
    """Rows of both samples in one matrix, less their mean if ``centre``."""
    classes, n, m, d = samples.sizes
    device = samples.x.device
    points = empty((classes, n + m, d), dtype, device)
    squares = empty((classes, n + m), float32, device)
    chunks = 0
    sums = squares
    if centre:
        sums, chunks = _sums(samples)
    tiles = memory_bound("prepass.stacked_kernel")
    x_blocks, y_blocks = (triton.cdiv(rows, tiles.blocks["BLOCK_N"]) for rows in (n, m))
    stacked_kernel[(classes * (x_blocks + y_blocks),)](
        samples.x,
        samples.y,
        _or_any(samples.x_lengths, squares),
        _or_any(samples.y_lengths, squares),
        sums,
        points,
        squares,
        *samples.x.stride()[:2],
        *samples.y.stride()[:2],
        n,
        m,
        d,
        chunks,
        x_blocks,
        x_blocks + y_blocks,
        **samples.lengths_given,
        **tiles.blocks,
        **LAUNCH_OPTIONS,
        CENTRE=centre,
        num_warps=tiles.warps,
    )
    return Stacked(points, squares)


def _sums(samples: Samples) -> tuple[Tensor, int]:
    classes, n, m, d = samples.sizes
    rows = max(CHUNK_ROWS, triton.cdiv(max(n, m), MAX_CHUNKS))
    x_chunks, y_chunks = triton.cdiv(n, rows), triton.cdiv(m, rows)
    chunks = x_chunks + y_chunks
    tiles = memory_bound("prepass.sums_kernel")
    sums = empty((classes, chunks, d), float32, samples.x.device)
    sums_kernel[(classes * chunks * triton.cdiv(d, tiles.blocks["BLOCK_D"]),)](
        samples.x,
        samples.y,
        _or_any(samples.x_lengths, sums),
        _or_any(samples.y_lengths, sums),
        sums,
        *samples.x.stride()[:2],
        *samples.y.stride()[:2],
        n,
        m,
        d,
        rows,
        x_chunks,
        chunks,
        **samples.lengths_given,
        **tiles.blocks,
        **LAUNCH_OPTIONS,
        num_warps=tiles.warps,
    )
    return sums, chunks


def elements(call: Call, squares: Tensor) -> Elements:
    """Bandwidths, pairs and counts; ``squares`` are read for the mean bandwidth only."""
    samples, bandwidth = call.samples, call.bandwidth
    classes, n, m, _ = samples.sizes
    device = samples.x.device
    result = Elements(
        empty((classes,), float32, device),
        empty((classes, 3), float64, device),
        empty((classes, 2), int32, device),
    )
    tiles = memory_bound("prepass.elements_kernel")
    elements_kernel[(classes,)](
        squares,
        _or_any(bandwidth, result.inverse_bandwidth),
        _or_any(samples.x_lengths, result.counts),
        _or_any(samples.y_lengths, result.counts),
        *result,
        1 if bandwidth is not None and bandwidth.numel() > 1 else 0,
        n,
        m,
        **samples.lengths_given,
        **LAUNCH_OPTIONS,
        MEAN_BANDWIDTH=call.mean_bandwidth,
        HAS_BANDWIDTH=bandwidth is not None,
        UNBIASED=call.unbiased,
        **tiles.blocks,
        num_warps=tiles.warps,
    )
    return result
