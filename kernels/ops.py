"""Registration only: schema, shapes, devices, gradient, vmap and autocast of the op."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import reference, values
from .precision import full_float32

_library = torch.library.Library("m3d_fast", "FRAGMENT")
_library.define(
    "mmd2(Tensor x, Tensor y, Tensor? bandwidth, Tensor? x_lengths, Tensor? y_lengths, str kernel,"
    " float[] parameters, bool unbiased, str? precision, bool value, bool grad_x, bool grad_y)"
    " -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "mmd2_backward(Tensor grad_output, Tensor gradient, Tensor value, ScalarType dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
mmd2 = torch.ops.m3d_fast.mmd2.default
mmd2_backward = torch.ops.m3d_fast.mmd2_backward.default

Outputs = tuple[Tensor, Tensor, Tensor]  # value, grad_x, grad_y; empty where not asked for


def _torch_kernel(
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
        result = reference.mmd2(
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
    values.check(*arguments[:5], unbiased=arguments[7])
    return _torch_kernel(*arguments)


def _fake(*arguments: Any) -> Outputs:
    x, y, (value, grad_x, grad_y) = arguments[0], arguments[1], arguments[-3:]
    dtype = reference.accumulator_dtype(x.dtype)
    return (
        x.new_empty(x.shape[:-2], dtype=dtype) if value else _empty(x),
        x.new_empty(x.shape, dtype=dtype) if grad_x else _empty(x),
        y.new_empty(y.shape, dtype=dtype) if grad_y else _empty(x),
    )


class _Mmd2(torch.autograd.Function):
    """Value and gradients in one pass; backward scales the gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Outputs:
        return mmd2(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        value, grad_x, grad_y = output
        ctx.mark_non_differentiable(grad_x, grad_y)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(value, grad_x, grad_y)
        ctx.dtypes = inputs[0].dtype, inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        value, *gradients = ctx.saved_tensors
        wanted = zip(gradients, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
        # handing on `value`, which belongs to the graph, lets a second derivative be noticed
        scaled = (
            mmd2_backward(grad_value, gradient, value, dtype)
            if need and grad_value is not None
            else None
            for gradient, dtype, need in wanted
        )
        return (*scaled, *[None] * 10)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _refuse_forward_mode(*tensors: Tensor) -> None:
    if any(unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError("mmd2 has no forward-mode derivative: use backward()")


def _autograd(*arguments: Any) -> Outputs:
    x, y, bandwidth = arguments[:3]
    *_, value, grad_x, grad_y = arguments
    _refuse_forward_mode(x, y)
    if _needs_gradient(bandwidth):
        raise ValueError("bandwidth: expected a tensor without requires_grad, got one with it")
    need_x, need_y = _needs_gradient(x), _needs_gradient(y)
    if not (value and (need_x or need_y)):
        with torch._C._AutoDispatchBelowAutograd():
            return mmd2(*arguments)
    result, x_gradient, y_gradient = _Mmd2.apply(
        *arguments[:-2], grad_x or need_x, grad_y or need_y
    )
    return (
        result,
        x_gradient if grad_x else _empty(x),
        y_gradient if grad_y else _empty(y),
    )


def _backward(grad_output: Tensor, gradient: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    return (grad_output[..., None, None] * gradient).to(dtype)


class _Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated: its own inputs' share in it was not kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return mmd2_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            "mmd2 has no second derivative: its gradient is computed in closed form, without a graph"
        )


def _backward_autograd(
    grad_output: Tensor, gradient: Tensor, value: Tensor, dtype: torch.dtype
) -> Tensor:
    _refuse_forward_mode(grad_output)
    if _needs_gradient(grad_output, value):
        return _Once.apply(grad_output, gradient, value, dtype)
    with torch._C._AutoDispatchBelowAutograd():
        return mmd2_backward(grad_output, gradient, value, dtype)


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


def _vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Outputs, Any]:
    """The hidden dimension becomes one more batch dimension."""
    size = info.batch_size
    x, y = (_to_front(arguments[i], in_dims[i], size) for i in (0, 1))
    folded = []
    for tensor, dim in zip(arguments[2:5], in_dims[2:5], strict=True):
        if tensor is not None:
            tensor = _to_front(tensor, dim, size)
            if tensor.ndim == 1:  # one bandwidth for every batch element
                tensor = tensor.reshape(size, *[1] * (x.ndim - 3))
            tensor = tensor.expand(x.shape[:-2])
        folded.append(tensor)
    flags = arguments[-3:]
    outputs = mmd2(x, y, *folded, *arguments[5:])
    return outputs, tuple(0 if flag else None for flag in flags)


def _backward_vmap(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[Tensor, int]:
    tensors = (
        _to_front(tensor, dim, info.batch_size)
        for tensor, dim in zip(arguments[:3], in_dims[:3], strict=True)
    )
    return mmd2_backward(*tensors, arguments[3]), 0


def _backward_fake(
    grad_output: Tensor, gradient: Tensor, value: Tensor, dtype: torch.dtype
) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


def _register() -> None:
    for op, kernels, fake, vmap in (
        (mmd2, {"CPU": _cpu, "CUDA": _torch_kernel, "Autograd": _autograd}, _fake, _vmap),
        (
            mmd2_backward,
            {"CPU": _backward, "CUDA": _backward, "Autograd": _backward_autograd},
            _backward_fake,
            _backward_vmap,
        ),
    ):
        for key, kernel in kernels.items():
            _library.impl(op, kernel, key)
        torch.library.register_fake(op, fake, lib=_library)
        torch.library.register_vmap(op, vmap, lib=_library)
    for key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(mmd2, _autocast, key)


_register()
