"""Launches family P: MMD^2 of many divisions of the same rows, for permutation tests."""

import torch
import triton
from torch import Tensor, bfloat16, float32, float64

from .call import Call
from .configs import config
from .encode import LAUNCH_OPTIONS, interpreting
from .jit.permute import divisions_kernel
from .prepass import Elements, Stacked, elements, stack
from .workspace import empty

PROGRAMS = 1056  # eight for each of 132 multiprocessors; each keeps a slot per division


def divided_mmd2(call: Call, members: Tensor) -> Tensor:
    """MMD^2 of every division, (B,), float64.

    Args:
        call: a single batch element; its x and y are one division, and give the bandwidth.
        members: ``(B, N + M)`` of zeros and ones, uint8 or bool, contiguous: 1 where a row of
            ``[x; y]`` belongs to the first sample, N times in every division.
    """
    stacked = stack(
        call.samples,
        bfloat16 if call.products == "bf16" else float32,
        centre=call.function.KERNEL == "gaussian",
    )
    numbers = elements(call, stacked.squares)
    within, touching, everything = _sums(call, stacked, numbers, members.view(torch.uint8))
    within_x, between = within, touching - within
    within_y = everything - 2 * touching + within
    pairs = numbers.pairs[0]
    return within_x / pairs[0] + within_y / pairs[1] - 2 * between / pairs[2]


def _sums(
    call: Call, stacked: Stacked, numbers: Elements, members: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tiles = config("permute.divisions_kernel", call.products, call.architecture)
    divisions, rows = members.shape
    row_blocks = triton.cdiv(rows, tiles.blocks["BLOCK_M"])
    count = row_blocks * (row_blocks + 1) // 2
    each = triton.cdiv(count, PROGRAMS)
    programs = triton.cdiv(count, each)
    device = members.device
    within = empty((programs, divisions), float64, device)
    touching = empty((programs, divisions), float64, device)
    everything = empty((programs,), float64, device)
    divisions_kernel[(programs,)](
        stacked.points,
        stacked.squares,
        numbers.inverse_bandwidth,
        members,
        within,
        touching,
        everything,
        call.function.parameters,
        rows,
        divisions,
        stacked.points.shape[2],
        stacked.points.stride(1),
        count,
        each,
        KERNEL=call.function.KERNEL,
        ORDER=call.function.ORDER,
        UNBIASED=call.unbiased,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        **tiles.blocks,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **LAUNCH_OPTIONS,
    )
    return (
        within.sum(0, dtype=float64),
        touching.sum(0, dtype=float64),
        everything.sum(0, dtype=float64),
    )
