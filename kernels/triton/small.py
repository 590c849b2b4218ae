"""Launches family S: value and gradient of a few rows in one program per block of them."""

from typing import Any, NamedTuple

import triton
from torch import Tensor, float32, float64

from . import tile
from .call import Call, Result, Samples
from .configs import CONFIGS, Config
from .encode import LAUNCH_OPTIONS, interpreting
from .jit.small import small_kernel, small_within_kernel
from .workspace import empty


class Step(NamedTuple):
    """One launch: a gradient, or the pairs within the sample that has none."""

    own: int  # 0: x, 1: y
    gradient: bool
    config: Config
    row_blocks: int


class Scratch(NamedTuple):
    """Numbers per batch element that the launches share."""

    inverse_bandwidth: Tensor  # (C,)
    totals: Tensor  # (C, slots) float64: shares of MMD^2


def _step(own: int, gradient: bool, call: Call) -> Step | None:
    mine, others = call.samples.sizes[1 + own], call.samples.sizes[2 - own]
    kernel, rows = "small.small_within_kernel", {"BLOCK_N": mine}
    if gradient:
        kernel, rows = "small.small_kernel", {"BLOCK_OWN": mine, "BLOCK_OTHER": others}
    fitting = [
        config
        for config in CONFIGS
        if config.kernel == kernel
        and config.products == call.products
        and min(config.architectures) <= call.architecture
        and all(config.blocks[name] >= count for name, count in rows.items())
    ]
    if not fitting:
        return None
    # padding is computed too
    config = min(fitting, key=lambda config: sum(config.blocks[name] for name in rows))
    return Step(own, gradient, config, triton.cdiv(mine, config.blocks["BLOCK_M"]))


def plan(call: Call) -> list[Step] | None:
    """The launches, or None if no tiles are as large as these samples."""
    steps = []
    # the first of them finds the bandwidth: y, whose gradient is the usual one
    for own, wanted in ((1, call.problem.grad_y), (0, call.problem.grad_x)):
        if wanted:
            steps.append(_step(own, True, call))
    assert steps, "a gradient: values alone are family V's"
    if call.problem.value and len(steps) == 1:
        steps.append(_step(int(not call.problem.grad_y), False, call))
    found = [step for step in steps if step is not None]
    return found if len(found) == len(steps) else None


def run(call: Call) -> Result:
    """Gradients in one launch each; then the value takes one more if only one is asked for."""
    steps = plan(call)
    if steps is None:
        return tile.run(call)
    classes, device = call.samples.sizes[0], call.samples.x.device
    slots = sum(step.row_blocks for step in steps)
    scratch = Scratch(empty((classes,), float32, device), empty((classes, slots), float64, device))
    gradients: dict[int, Tensor] = {}
    slot = 0
    for step in steps:
        if step.gradient:
            pairs = ("within" if gradients else "all") if call.problem.value else "none"
            gradients[step.own] = _gradient(call, step, scratch, slot, pairs)
        else:
            _within(call, step, scratch, slot)
        slot += step.row_blocks
    value = scratch.totals.sum(-1).to(float32) if call.problem.value else None
    return Result(value, gradients.get(0), gradients.get(1))


def _sides(samples: Samples, own: int) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Points and lengths of the other sample, then of ``own``."""
    x, y = (samples.x, samples.x_lengths), (samples.y, samples.y_lengths)
    return (y, x) if own == 0 else (x, y)


def _shared(call: Call, step: Step) -> dict[str, Any]:
    return {
        "UNBIASED": call.unbiased,
        "KERNEL": call.function.KERNEL,
        "ORDER": call.function.ORDER,
        "PRECISION": call.products,
        "INTERPRET": interpreting(),
        "num_warps": step.config.warps,
        "num_stages": step.config.stages,
        **step.config.blocks,
        **LAUNCH_OPTIONS,
    }


def _gradient(call: Call, step: Step, scratch: Scratch, slot: int, pairs: str) -> Tensor:
    (other, other_lengths), (own, own_lengths) = _sides(call.samples, step.own)
    classes, rows, d = own.shape
    gradient = empty((classes, rows, d), float32, own.device)
    bandwidth, inverse = call.bandwidth, scratch.inverse_bandwidth
    small_kernel[(classes * step.row_blocks,)](
        other,
        own,
        # a kernel needs some pointer, even for what a constexpr says is not there
        inverse if other_lengths is None else other_lengths,
        inverse if own_lengths is None else own_lengths,
        inverse if bandwidth is None else bandwidth,
        gradient,
        inverse,
        scratch.totals,
        call.function.parameters,
        *other.stride()[:2],
        *own.stride()[:2],
        int(bandwidth is not None and bandwidth.numel() > 1),
        other.shape[1],
        rows,
        d,
        step.row_blocks,
        scratch.totals.shape[1],
        slot,
        HAS_OTHER_LENGTHS=other_lengths is not None,
        HAS_OWN_LENGTHS=own_lengths is not None,
        MEAN_BANDWIDTH=call.mean_bandwidth,
        HAS_BANDWIDTH=bandwidth is not None,
        VALUE=pairs,
        **_shared(call, step),
    )
    return gradient


def _within(call: Call, step: Step, scratch: Scratch, slot: int) -> None:
    _, (points, lengths) = _sides(call.samples, step.own)
    classes, rows, d = points.shape
    small_within_kernel[(classes * step.row_blocks,)](
        points,
        scratch.inverse_bandwidth if lengths is None else lengths,
        scratch.inverse_bandwidth,
        scratch.totals,
        call.function.parameters,
        *points.stride()[:2],
        rows,
        d,
        step.row_blocks,
        scratch.totals.shape[1],
        slot,
        HAS_LENGTHS=lengths is not None,
        **_shared(call, step),
    )
