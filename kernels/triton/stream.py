"""Launcher of the stream family: rows stay on chip while all rows are read, for few columns."""

from typing import Any

import triton
from torch import Tensor, float32, float64

from ..reference import Result
from . import tile
from .call import Call
from .configs import Config
from .jit.stream import mmd2_stream_gradient_kernel
from .prepass import BatchScalars, Stacked, compute_scalars, stack_samples
from .value import split_stacked, sum_tiles
from .workspace import empty


def _config(input_precision: str, columns: int, warps: int = 4, **others: Any) -> Config:
    return Config(
        kernel=mmd2_stream_gradient_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_D": columns},
        warps=warps,
        architectures=(90,),
        **others,
    )


# BLOCK_D holds all columns: with the next larger size, each of these spills. One warpgroup per 64
# rows, as in tile.py: with 8 warps 22 ("tf32x3") and 30 ("bf16x3") barriers per step instead of 8,
# and one program per multiprocessor instead of two
CONFIGS = (
    _config("tf32x3", 32, stages=1, tensor_cores="wgmma"),
    _config("bf16x3", 64, stages=1, tensor_cores="wgmma"),
    _config("bf16", 128, tensor_cores="wgmma", pointers={"stacked_ptr": "bf16"}),
    _config("ieee", 16, 8, reason="twice as many spill on triton 3.6"),
)


def run(call: Call) -> Result:
    """Compute value and gradients; a sample without a gradient takes tiles of the value family."""
    problem = call.problem
    config = call.find_config(
        CONFIGS,
        mmd2_stream_gradient_kernel,
        BLOCK_D=problem.columns,
    )
    if config is None:
        return tile.run(call)
    stacked = stack_samples(call)
    scalars = compute_scalars(call, stacked.squares)
    owns = [own for own in (1, 0) if (problem.grad_x, problem.grad_y)[own]]
    blocks = [triton.cdiv(call.samples.sizes[1 + own], config.blocks["BLOCK_M"]) for own in owns]
    totals = empty((problem.classes, sum(blocks)), float64, call.samples.x.device)
    gradients: dict[int, Tensor] = {}
    slot = 0
    for own, count in zip(owns, blocks, strict=True):
        terms = ("within" if gradients else "all") if problem.value else "none"
        gradients[own] = _launch_gradient(
            call, config, stacked, scalars, totals, own=own, slot=slot, terms=terms
        )
        slot += count
    value = _compute_value(call, stacked, scalars, totals, owns) if problem.value else None
    return Result(value, gradients.get(0), gradients.get(1))


def _compute_value(
    call: Call, stacked: Stacked, scalars: BatchScalars, totals: Tensor, owns: list[int]
) -> Tensor:
    value = totals.sum(-1)
    if len(owns) == 1:
        other = 1 - owns[0]
        sample = split_stacked(stacked, call.samples.sizes[1])[other]
        within = sum_tiles(call, sample, None, scalars).flatten(1).sum(-1, dtype=float64)
        value = value + within / scalars.pairs[:, other]
    return value.to(float32)


def _launch_gradient(
    call: Call,
    config: Config,
    stacked: Stacked,
    scalars: BatchScalars,
    totals: Tensor,
    *,
    own: int,
    slot: int,
    terms: str,
) -> Tensor:
    classes, n, m, d = call.samples.sizes
    size = (n, m)[own]
    row_blocks = triton.cdiv(size, config.blocks["BLOCK_M"])
    gradient = empty((classes, size, d), float32, totals.device)
    mmd2_stream_gradient_kernel[(classes * row_blocks,)](
        stacked_ptr=stacked.points,
        squares_ptr=stacked.squares,
        inverse_bandwidth_ptr=scalars.inverse_bandwidth,
        pairs_ptr=scalars.pairs,
        counts_ptr=scalars.counts,
        gradient_ptr=gradient,
        totals_ptr=totals,
        N=n,
        M=m,
        D=d,
        row_blocks=row_blocks,
        slots=totals.shape[1],
        first_slot=slot,
        OWN=own,
        VALUE_TERMS=terms,
        **call.bind_function(),
        **config.blocks,
        **config.options,
    )
    return gradient
