"""Registration of the weighted op with torch: schema, shapes, gradient, vmap; and its dispatch."""

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .._ops import add_op_namespace_prefix
from .._ops import ops as namespace
from ..precision import full_float32
from ..reference import accumulator_dtype
from . import tiled
from .expression import Expression


class WeightedArguments(NamedTuple):
    """Arguments of ``torch.ops.m3d_fast.weighted_mmd2``; see ``tiled.mmd2`` and ``Expression``."""

    x: Tensor
    y: Tensor
    x_weights: Tensor | None
    y_weights: Tensor | None
    names: list[str]
    counts: list[int]
    views: list[int]
    numbers: list[float]
    bounds: list[int]
    unbiased: bool
    value: bool = True
    grad_x: bool = False
    grad_y: bool = False


ops._library.define(
    "weighted_mmd2(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, str[] names,"
    " int[] counts, int[] views, float[] numbers, int[] bounds, bool unbiased, bool value,"
    " bool grad_x, bool grad_y) -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
weighted_mmd2 = namespace.weighted_mmd2.default


@cache
def _report_path(kernels: str) -> None:
    logging.getLogger("m3d_fast").info("mmd2 with weights or of %s runs as plain torch", kernels)


def _compute(*inputs: Any) -> ops.Outputs:
    arguments = WeightedArguments(*inputs)
    x = arguments.x
    if x.is_cuda:
        _report_path(", ".join(arguments.names))
    with torch.autocast(x.device.type, enabled=False), full_float32(x.device):
        result = tiled.mmd2(
            x,
            arguments.y,
            arguments.x_weights,
            arguments.y_weights,
            Expression(*arguments[4:9]),
            unbiased=arguments.unbiased,
            value=arguments.value,
            grad_x=arguments.grad_x,
            grad_y=arguments.grad_y,
        )
    value, grad_x, grad_y = (ops._empty(x) if one is None else one for one in result)
    return value, grad_x, grad_y


def _fake(*inputs: Any) -> ops.Outputs:
    arguments = WeightedArguments(*inputs)
    x, y, dtype = arguments.x, arguments.y, accumulator_dtype(arguments.x.dtype)
    return (
        x.new_empty(x.shape[:-2], dtype=dtype) if arguments.value else ops._empty(x),
        x.new_empty(x.shape, dtype=dtype) if arguments.grad_x else ops._empty(x),
        y.new_empty(y.shape, dtype=dtype) if arguments.grad_y else ops._empty(x),
    )


def _vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[ops.Outputs, Any]:
    return weighted_mmd2(*_move(info, in_dims, inputs)), _out_dims(inputs)


def _move(info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """Make the dimension that vmap hides the first batch dimension."""
    return [
        ops._move_to_front(one, dim, info.batch_size) if isinstance(one, Tensor) else one
        for one, dim in zip(inputs, in_dims, strict=True)
    ]


def _out_dims(inputs: tuple[Any, ...]) -> tuple[int | None, ...]:
    return tuple(0 if flag else None for flag in WeightedArguments(*inputs)[10:])


class _Transformable(torch.autograd.Function):
    """The op in the form that torch.func needs, as ``ops._TransformableMmd2``."""

    @staticmethod
    def forward(*inputs: Any) -> ops.Outputs:
        outputs: ops.Outputs = weighted_mmd2(*inputs)
        return outputs

    setup_context = staticmethod(ops._save)
    backward = staticmethod(ops._scale_saved)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(ops._NO_FORWARD_MODE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[ops.Outputs, Any]:
        return _Transformable.apply(*_move(info, in_dims, inputs)), _out_dims(inputs)


def compute_value(arguments: WeightedArguments) -> Tensor:
    """Return the value alone, differentiable by autograd or torch.func."""
    enabled = torch.is_grad_enabled()
    transforming = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if transforming and enabled:
        # which sample is differentiated is visible only below the transforms
        return _Transformable.apply(*arguments[:-2], True, True)[0]
    wanted = (enabled and side.requires_grad for side in (arguments.x, arguments.y))
    value: Tensor = weighted_mmd2(*arguments[:-2], *wanted)[0]
    return value


for _key in ("CPU", "CUDA"):
    ops._library.impl(weighted_mmd2, _compute, _key)
torch.library.register_fake(weighted_mmd2, _fake, lib=ops._library)
torch.library.register_autograd(
    add_op_namespace_prefix("weighted_mmd2"),
    ops._scale_saved,
    setup_context=ops._save,
    lib=ops._library,
)
torch.library.register_vmap(weighted_mmd2, _vmap, lib=ops._library)
