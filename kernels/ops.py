"""Registration only: schema, shapes, devices, gradient, vmap and autocast of the op."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import reference
from .arguments import OpArguments
from .checks import check_values
from .cpu import tiled
from .precision import full_float32

_library = torch.library.Library("m3d_fast", "FRAGMENT")
_library.define(
    "mmd2(Tensor x, Tensor y, Tensor? bandwidth, Tensor? x_lengths, Tensor? y_lengths, str kernel,"
    " float[] parameters, bool unbiased, str? precision, bool value, bool grad_x, bool grad_y)"
    " -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
mmd2 = torch.ops.m3d_fast.mmd2.default

Outputs = tuple[Tensor, Tensor, Tensor]  # value, grad_x, grad_y; empty where not asked for

_NO_FORWARD_MODE = "mmd2 has no forward-mode derivative: use reverse mode"


def _plain_torch(
    compute: Callable[..., reference.Result],
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    kernel: str,
    parameters: list[float],
    unbiased: bool,
    precision: str | None,
    value: bool,
    grad_x: bool,
    grad_y: bool,
) -> Outputs:
    # precision is the least that will do: this path is always exact to float32
    with full_float32(x.device):
        result = compute(
            x,
            y,
            reference.Rule(kernel, parameters, unbiased),
            bandwidth=bandwidth,
            x_lengths=x_lengths,
            y_lengths=y_lengths,
            value=value,
            grad_x=grad_x,
            grad_y=grad_y,
        )
    return (
        _empty(x) if result.value is None else result.value,
        _empty(x) if result.grad_x is None else result.grad_x,
        _empty(x) if result.grad_y is None else result.grad_y,
    )


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=reference.accumulator_dtype(like.dtype))


def _cpu(*arguments: Any) -> Outputs:
    check_values(*arguments[:5], unbiased=arguments[7])
    return _plain_torch(tiled.mmd2, *arguments)


@cache
def _launcher() -> Any:
    """The module that launches Triton, imported on first use; None where there is no Triton."""
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError as error:
        logging.getLogger("m3d_fast").info("mmd2 runs as plain torch: %s", error)
        return None
    from .triton import dispatch

    return dispatch


def _cuda(*arguments: Any) -> Outputs:
    launcher = _launcher()
    if launcher is None or not launcher.serves(*arguments[:2], arguments[5]):
        return _plain_torch(reference.mmd2, *arguments)
    result: Outputs = launcher.mmd2_cuda(OpArguments(*arguments))
    return result


def _fake(*arguments: Any) -> Outputs:
    x, y, (value, grad_x, grad_y) = arguments[0], arguments[1], arguments[-3:]
    dtype = reference.accumulator_dtype(x.dtype)
    return (
        x.new_empty(x.shape[:-2], dtype=dtype) if value else _empty(x),
        x.new_empty(x.shape, dtype=dtype) if grad_x else _empty(x),
        y.new_empty(y.shape, dtype=dtype) if grad_y else _empty(x),
    )


class _Once(torch.autograd.Function):
    """Scale a gradient, and refuse to be differentiated: the graph of the gradient was not kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_value: Tensor, gradient: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        return _scale(grad_value, gradient, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise NotImplementedError("mmd2 has no second derivative: its gradient has no graph")


def _scale(grad_value: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    return (grad_value[..., None, None] * gradient).to(dtype)


class _Mmd2(torch.autograd.Function):
    """Value and gradients in one pass; backward scales the gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Outputs:
        outputs = _below_autograd(*arguments)
        _save(ctx, arguments, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        value, *gradients = ctx.saved_tensors
        pulled: list[Tensor | None] = [None] * 12
        for side, dtype in enumerate(ctx.dtypes):
            if grad_value is None or not ctx.needs_input_grad[side]:
                continue
            if torch.is_grad_enabled():
                # value belongs to the graph: through it a second derivative is noticed
                pulled[side] = _Once.apply(grad_value, gradients[side], value, dtype)
            else:
                pulled[side] = _scale(grad_value, gradients[side], dtype)
        return tuple(pulled)


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: Outputs) -> None:
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*outputs)
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype


def _below_autograd(*arguments: Any) -> Outputs:
    with torch._C._AutoDispatchBelowAutograd():
        return mmd2(*arguments)


def _needs_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def _autograd(*arguments: Any) -> Outputs:
    x, y, bandwidth = arguments[:3]
    value, grad_x, grad_y = arguments[-3:]
    if unpack_dual(x).tangent is not None or unpack_dual(y).tangent is not None:
        raise NotImplementedError(_NO_FORWARD_MODE)
    if _needs_gradient(bandwidth):
        raise ValueError("bandwidth: expected a tensor without requires_grad, got one with it")
    need_x, need_y = _needs_gradient(x), _needs_gradient(y)
    if not (value and (need_x or need_y)):
        return _below_autograd(*arguments)
    result, x_gradient, y_gradient = _Mmd2.apply(
        *arguments[:-2], grad_x or need_x, grad_y or need_y
    )
    return result, x_gradient if grad_x else _empty(x), y_gradient if grad_y else _empty(x)


def _autocast(*arguments: Any) -> Outputs:
    # mixed and half-precision inputs are read as they are and summed in float32: only the
    # products inside must be kept from autocast
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return mmd2(*arguments)


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def _to_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make the dimension that vmap hides one more batch dimension."""
    x, y = (_to_front(arguments[i], in_dims[i], size) for i in (0, 1))
    folded = []
    for tensor, dim in zip(arguments[2:5], in_dims[2:5], strict=True):
        if tensor is not None:
            tensor = _to_front(tensor, dim, size)
            if tensor.ndim == 1:  # one bandwidth for every batch element
                tensor = tensor.reshape(size, *[1] * (x.ndim - 3))
            tensor = tensor.expand(x.shape[:-2])
        folded.append(tensor)
    return x, y, *folded, *arguments[5:]


def _out_dims(flags: tuple[bool, ...]) -> tuple[int | None, ...]:
    return tuple(0 if flag else None for flag in flags)


def _vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Outputs, Any]:
    return mmd2(*_fold(info.batch_size, in_dims, arguments)), _out_dims(arguments[-3:])


class _Transformed(torch.autograd.Function):
    """``_Mmd2`` in the form torch.func wants, which takes 17 us longer per call."""

    @staticmethod
    def forward(*arguments: Any) -> Outputs:
        return mmd2(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        _save(ctx, inputs, output)

    backward = _Mmd2.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(_NO_FORWARD_MODE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Outputs, Any]:
        folded = _fold(info.batch_size, in_dims, arguments)
        return _Transformed.apply(*folded), _out_dims(arguments[-3:])


def differentiable(*arguments: Any) -> Tensor:
    """The value alone, for autograd or torch.func; the arguments of the op less its flags."""
    transforming = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if transforming and torch.is_grad_enabled():
        # which side is differentiated shows only below the transforms
        return _Transformed.apply(*arguments, True, True, True)[0]
    return mmd2(*arguments, True, False, False)[0]


for _key, _kernel in (
    ("CPU", _cpu),
    ("CUDA", _cuda),
    ("Autograd", _autograd),
    ("AutocastCPU", _autocast),
    ("AutocastCUDA", _autocast),
):
    _library.impl(mmd2, _kernel, _key)
torch.library.register_fake(mmd2, _fake, lib=_library)
torch.library.register_vmap(mmd2, _vmap, lib=_library)
