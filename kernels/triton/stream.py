"""Launches family F: rows stay on chip while all others stream past, for few columns."""

import triton
from torch import Tensor, bfloat16, float32, float64

from . import tile
from .call import Call, Result
from .configs import CONFIGS, Config
from .encode import LAUNCH_OPTIONS, interpreting
from .jit.stream import stream_kernel
from .prepass import Elements, Stacked, elements, stack
from .value import Side, sums
from .workspace import empty


def _tiles(call: Call) -> Config | None:
    fitting = [
        config
        for config in CONFIGS
        if config.kernel == "stream.stream_kernel"
        and config.products == call.products
        and min(config.architectures) <= call.architecture
        and config.blocks["BLOCK_D"] >= call.problem.columns
    ]
    return min(fitting, key=lambda config: config.blocks["BLOCK_D"], default=None)


def run(call: Call) -> Result:
    """Value and gradients; without the second gradient its block of K is family V's."""
    tiles, problem = _tiles(call), call.problem
    if tiles is None:
        return tile.run(call)
    dtype = bfloat16 if call.products == "bf16" else float32
    stacked = stack(call.samples, dtype, centre=call.function.KERNEL == "gaussian")
    numbers = elements(call, stacked.squares)
    owns = [own for own in (1, 0) if (problem.grad_x, problem.grad_y)[own]]
    blocks = [triton.cdiv(call.samples.sizes[1 + own], tiles.blocks["BLOCK_M"]) for own in owns]
    totals = empty((problem.classes, sum(blocks)), float64, call.samples.x.device)
    gradients: dict[int, Tensor] = {}
    slot = 0
    for own, count in zip(owns, blocks, strict=True):
        pairs = ("within" if gradients else "all") if problem.value else "none"
        gradients[own] = _gradient(call, tiles, stacked, numbers, totals, own, slot, pairs)
        slot += count
    value = _value(call, stacked, numbers, totals, owns) if problem.value else None
    return Result(value, gradients.get(0), gradients.get(1))


def _value(
    call: Call, stacked: Stacked, numbers: Elements, totals: Tensor, owns: list[int]
) -> Tensor:
    value = totals.sum(-1)
    if len(owns) == 1:
        n, other = call.samples.sizes[1], 1 - owns[0]
        part = slice(0, n) if other == 0 else slice(n, None)
        side = Side(stacked.points[:, part], stacked.squares[:, part], other)
        within = sums(call, side, None, numbers).flatten(1).sum(-1, dtype=float64)
        value = value + within / numbers.pairs[:, other]
    return value.to(float32)


def _gradient(
    call: Call,
    tiles: Config,
    stacked: Stacked,
    numbers: Elements,
    totals: Tensor,
    own: int,
    slot: int,
    pairs: str,
) -> Tensor:
    classes, n, m, d = call.samples.sizes
    size = (n, m)[own]
    row_blocks = triton.cdiv(size, tiles.blocks["BLOCK_M"])
    gradient = empty((classes, size, d), float32, totals.device)
    stream_kernel[(classes * row_blocks,)](
        *stacked,
        *numbers,
        gradient,
        totals,
        call.function.parameters,
        n,
        m,
        d,
        row_blocks,
        totals.shape[1],
        slot,
        OWN=own,
        VALUE=pairs,
        KERNEL=call.function.KERNEL,
        ORDER=call.function.ORDER,
        UNBIASED=call.unbiased,
        PRECISION=call.products,
        INTERPRET=interpreting(),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **tiles.blocks,
        **LAUNCH_OPTIONS,
    )
    return gradient
