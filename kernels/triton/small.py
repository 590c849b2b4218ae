"""Launcher of the small family: value and gradient of few rows, one program per block of them."""

from typing import Any, NamedTuple

import triton
from torch import Tensor, float32, float64

from ..reference import Result
from . import tile
from .call import Call, Samples, replace_missing
from .configs import Config
from .jit.small import mmd2_small_gradient_kernel, mmd2_small_within_kernel
from .workspace import empty


def _gradient_config(
    input_precision: str, m: int, other: int, own: int, d: int, **others: Any
) -> Config:
    return Config(
        kernel=mmd2_small_gradient_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": m, "BLOCK_OTHER": other, "BLOCK_OWN": own, "BLOCK_D": d},
        warps=8,
        stages=1,
        architectures=(90,),
        barriers=68,
        **others,
    )


def _within_config(input_precision: str, n: int, d: int, warps: int, **others: Any) -> Config:
    return Config(
        kernel=mmd2_small_within_kernel,
        input_precision=input_precision,
        blocks={"BLOCK_M": 64, "BLOCK_N": n, "BLOCK_D": d},
        warps=warps,
        architectures=(90,),
        **others,
    )


# the tiles are as large as the samples; with 256 other rows the exact products spill. Gradients
# take 8 warps, although their loops then have 54 to 68 barriers: 4 warps have 20, but spill 48 to
# 456 bytes of registers
CONFIGS = (
    _gradient_config("tf32x3", 64, 64, 128, 16, tensor_cores="wgmma", shared_memory=114688),
    _gradient_config(
        *("tf32x3", 32, 128, 64, 16),
        tensor_cores="mma",
        reason="64 own rows, which wgmma takes, spill on triton 3.6",
    ),
    _gradient_config("bf16x3", 64, 64, 128, 32, tensor_cores="wgmma"),
    _gradient_config("bf16x3", 64, 128, 64, 32, tensor_cores="wgmma"),
    _gradient_config("bf16", 64, 64, 128, 32, tensor_cores="wgmma"),
    _gradient_config("bf16", 64, 256, 64, 32, tensor_cores="wgmma"),
    _gradient_config("ieee", 32, 128, 128, 16),
    # one warpgroup per 64 rows, as in tile.py: 4 barriers per step instead of 24
    _within_config("tf32x3", 128, 16, 4, stages=3, tensor_cores="wgmma", reason="32 columns spill"),
    _within_config("bf16x3", 128, 32, 4, stages=3, tensor_cores="wgmma"),
    _within_config(
        *("bf16", 256, 32, 8),
        stages=3,
        shared_memory=102656,
        tensor_cores="wgmma",
        reason="4 warps spill",
    ),
    _within_config("ieee", 128, 16, 8),
)


class Launch(NamedTuple):
    """The launch of one kernel: a gradient, or the value within the sample that has none."""

    own: int  # 0: x, 1: y
    gradient: bool
    config: Config
    row_blocks: int


class Workspace(NamedTuple):
    """Numbers per batch element that the launches share."""

    inverse_bandwidth: Tensor  # (C,)
    totals: Tensor  # (C, slots) float64: shares of MMD^2


def _plan_launch(own: int, gradient: bool, call: Call) -> Launch | None:
    rows, other_rows = call.samples.sizes[1 + own], call.samples.sizes[2 - own]
    kernel = mmd2_small_gradient_kernel if gradient else mmd2_small_within_kernel
    sizes = {"BLOCK_OWN": rows, "BLOCK_OTHER": other_rows} if gradient else {"BLOCK_N": rows}
    config = call.find_config(CONFIGS, kernel, **sizes)
    if config is None:
        return None
    return Launch(own, gradient, config, triton.cdiv(rows, config.blocks["BLOCK_M"]))


def plan_launches(call: Call) -> list[Launch] | None:
    """List the launches; None if a sample has more rows than any tile."""
    plans = []
    # the first launch computes the bandwidth: for y, whose gradient is the usual one
    for own, requested in ((1, call.problem.grad_y), (0, call.problem.grad_x)):
        if requested:
            plans.append(_plan_launch(own, True, call))
    assert plans, "a gradient: the value family computes values alone"
    if call.problem.value and len(plans) == 1:
        plans.append(_plan_launch(int(not call.problem.grad_y), False, call))
    launches = [launch for launch in plans if launch is not None]
    return launches if len(launches) == len(plans) else None


def run(call: Call) -> Result:
    """Compute each gradient in one launch; with one gradient the value needs a second launch."""
    launches = plan_launches(call)
    if launches is None:
        return tile.run(call)
    classes, device = call.samples.sizes[0], call.samples.x.device
    slots = sum(launch.row_blocks for launch in launches)
    workspace = Workspace(
        empty((classes,), float32, device), empty((classes, slots), float64, device)
    )
    gradients: dict[int, Tensor] = {}
    slot = 0
    for launch in launches:
        if launch.gradient:
            terms = ("within" if gradients else "all") if call.problem.value else "none"
            gradients[launch.own] = _launch_gradient(call, launch, workspace, slot, terms)
        else:
            _launch_within(call, launch, workspace, slot)
        slot += launch.row_blocks
    value = workspace.totals.sum(-1).to(float32) if call.problem.value else None
    return Result(value, gradients.get(0), gradients.get(1))


def _order_samples(samples: Samples, own: int) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Points and lengths of the other sample, then of ``own``."""
    x, y = (samples.x, samples.x_lengths), (samples.y, samples.y_lengths)
    return (y, x) if own == 0 else (x, y)


def _launch_gradient(
    call: Call, launch: Launch, workspace: Workspace, slot: int, terms: str
) -> Tensor:
    (other, other_lengths), (own, own_lengths) = _order_samples(call.samples, launch.own)
    classes, rows, d = own.shape
    gradient = empty((classes, rows, d), float32, own.device)
    inverse_bandwidth, totals = workspace
    mmd2_small_gradient_kernel[(classes * launch.row_blocks,)](
        other_ptr=other,
        own_ptr=own,
        other_lengths_ptr=replace_missing(other_lengths, inverse_bandwidth),
        own_lengths_ptr=replace_missing(own_lengths, inverse_bandwidth),
        gradient_ptr=gradient,
        inverse_bandwidth_ptr=inverse_bandwidth,
        totals_ptr=totals,
        other_class_stride=other.stride(0),
        other_row_stride=other.stride(1),
        own_class_stride=own.stride(0),
        own_row_stride=own.stride(1),
        OTHER_ROWS=other.shape[1],
        OWN_ROWS=rows,
        D=d,
        row_blocks=launch.row_blocks,
        slots=totals.shape[1],
        first_slot=slot,
        HAS_OTHER_LENGTHS=other_lengths is not None,
        HAS_OWN_LENGTHS=own_lengths is not None,
        VALUE_TERMS=terms,
        **call.bind_bandwidth(inverse_bandwidth),
        **call.bind_function(),
        **launch.config.blocks,
        **launch.config.options,
    )
    return gradient


def _launch_within(call: Call, launch: Launch, workspace: Workspace, slot: int) -> None:
    _, (points, lengths) = _order_samples(call.samples, launch.own)
    classes, rows, d = points.shape
    inverse_bandwidth, totals = workspace
    mmd2_small_within_kernel[(classes * launch.row_blocks,)](
        points_ptr=points,
        lengths_ptr=replace_missing(lengths, inverse_bandwidth),
        inverse_bandwidth_ptr=inverse_bandwidth,
        totals_ptr=totals,
        class_stride=points.stride(0),
        row_stride=points.stride(1),
        ROWS=rows,
        D=d,
        row_blocks=launch.row_blocks,
        slots=totals.shape[1],
        first_slot=slot,
        HAS_LENGTHS=lengths is not None,
        **call.bind_function(),
        **launch.config.blocks,
        **launch.config.options,
    )
