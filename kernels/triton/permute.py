"""Launcher of the permute family: MMD^2 of many permutations of the same rows."""

from typing import Any

import torch
import triton
from torch import Tensor, float64

from .call import Call
from .configs import Config
from .jit.permute import mmd2_permute_sums_kernel
from .prepass import BatchScalars, Stacked, compute_scalars, stack_samples
from .workspace import empty


def _config(input_precision: str, size: int, depth: int, warps: int = 4, **others: Any) -> Config:
    return Config(
        kernel=mmd2_permute_sums_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": size, "BLOCK_D": depth, "BLOCK_B": 64},
        warps=warps,
        barriers=46,  # its loop over tiles holds those of the products and sums
        **others,
    )


# zeros and ones go through tensor cores even where distances do not. One warpgroup per 64 rows, as
# in tile.py: with 8 warps the loops have 46, 42 and 34 barriers instead of 29, 22 and 19, and one
# program runs per multiprocessor instead of two
CONFIGS = (
    _config("tf32x3", 64, 32, architectures=(90,), tensor_cores="wgmma"),
    _config("tf32x3", 64, 16, architectures=(80,), reason="steps of 32 spill"),
    _config("bf16x3", 64, 32, tensor_cores="wgmma"),
    _config("bf16", 128, 64, 8, tensor_cores="wgmma", pointers={"points_ptr": "bf16"}),
    _config("ieee", 64, 16, tensor_cores="wgmma"),
)

PROGRAMS = 1056  # eight for each of 132 multiprocessors; each has a slot per permutation


def compute_permuted_mmd2(call: Call, members: Tensor) -> Tensor:
    """Compute MMD^2 of every permutation, (B,), float64.

    Args:
        call: a single batch element, whose rows give the bandwidth.
        members: ``(B, N + M)``, bool, contiguous: whether a row of ``[x; y]`` belongs to the first
            sample; N do in every permutation.
    """
    _, n, m, _ = call.samples.sizes
    # the smaller sample is indicated: the sum within the other one is a difference of large sums,
    # whose rounding would show after division by the few pairs of the smaller sample
    indicated, rest = (1, 0) if n > m else (0, 1)
    members = members.logical_not() if n > m else members
    stacked = stack_samples(call)
    scalars = compute_scalars(call, stacked.squares)
    within, touching, everything = _sum_permutations(call, stacked, scalars, members)
    between = touching - within
    within_rest = everything - 2 * touching + within
    pairs = scalars.pairs[0]
    return within / pairs[indicated] + within_rest / pairs[rest] - 2 * between / pairs[2]


def _sum_permutations(
    call: Call, stacked: Stacked, scalars: BatchScalars, members: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum k within the rows that ``members`` indicates, between them and all rows, and overall."""
    config = call.find_config(CONFIGS, mmd2_permute_sums_kernel)
    assert config is not None
    permutations, rows = members.shape
    row_blocks = triton.cdiv(rows, config.blocks["BLOCK_M"])
    tiles = row_blocks * (row_blocks + 1) // 2
    tiles_each = triton.cdiv(tiles, PROGRAMS)
    programs = triton.cdiv(tiles, tiles_each)
    device = members.device
    within = empty((programs, permutations), float64, device)
    touching = empty((programs, permutations), float64, device)
    everything = empty((programs,), float64, device)
    mmd2_permute_sums_kernel[(programs,)](
        points_ptr=stacked.points,
        squares_ptr=stacked.squares,
        inverse_bandwidth_ptr=scalars.inverse_bandwidth,
        members_ptr=members.view(torch.uint8),
        within_ptr=within,
        touching_ptr=touching,
        all_ptr=everything,
        R=rows,
        B=permutations,
        D=stacked.points.shape[2],
        row_stride=stacked.points.stride(1),
        tiles=tiles,
        tiles_each=tiles_each,
        **call.bind_function(),
        **config.blocks,
        **config.options,
    )
    return within.sum(0), touching.sum(0), everything.sum(0)
