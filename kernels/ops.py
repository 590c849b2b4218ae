"""Registration of the op with torch: schema, shapes, devices, gradient, vmap and autocast."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import reference
from ._ops import ops as namespace
from .arguments import OpArguments
from .checks import check_values
from .cpu import tiled
from .precision import bfloat16_products, full_float32

_library = torch.library.Library(namespace.name, "FRAGMENT")
_library.define(
    "mmd2(Tensor x, Tensor y, Tensor? bandwidth, Tensor? x_lengths, Tensor? y_lengths, str kernel,"
    " float[] parameters, bool unbiased, str? precision, bool value, bool grad_x, bool grad_y)"
    " -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
mmd2 = namespace.mmd2.default

# tuples as arguments of kernels, bf16x3 products, programmatic dependent launch
OLDEST_TRITON = (3, 6)

Outputs = tuple[Tensor, Tensor, Tensor]  # value, grad_x, grad_y; empty unless requested

_NO_FORWARD_MODE = "mmd2 has no forward-mode derivative: use reverse mode"


def _compute_in_torch(
    compute: Callable[..., reference.Result],
    arguments: OpArguments,
    products: AbstractContextManager[None],
) -> Outputs:
    """Call ``compute``, which has the signature of ``reference.mmd2``, in ``products``."""
    x = arguments.x
    with products:
        result = compute(
            x,
            arguments.y,
            reference.Rule(arguments.kernel, arguments.parameters, arguments.unbiased),
            bandwidth=arguments.bandwidth,
            x_lengths=arguments.x_lengths,
            y_lengths=arguments.y_lengths,
            value=arguments.value,
            grad_x=arguments.grad_x,
            grad_y=arguments.grad_y,
        )
    return (
        _empty(x) if result.value is None else result.value,
        _empty(x) if result.grad_x is None else result.grad_x,
        _empty(x) if result.grad_y is None else result.grad_y,
    )


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=reference.accumulator_dtype(like.dtype))


def _cpu(*inputs: Any) -> Outputs:
    arguments = OpArguments(*inputs)
    check_values(arguments)
    x, y = arguments.x, arguments.y
    if arguments.precision == "medium" and tiled.gains_from_bfloat16(x, y, arguments.kernel):
        compute = partial(tiled.mmd2, bfloat16=True)
        return _compute_in_torch(compute, arguments, bfloat16_products())
    # ``precision`` is a lower bound, and torch's setting is not followed down
    return _compute_in_torch(tiled.mmd2, arguments, full_float32(x.device))


@cache
def load_dispatch() -> Any:
    """Import the module that launches Triton kernels, on first use; None without Triton 3.6."""
    try:
        import triton
    except ModuleNotFoundError as error:
        logging.getLogger("m3d_fast").info("mmd2 runs as plain torch: %s", error)
        return None
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST_TRITON:
        logging.getLogger("m3d_fast").warning(
            "mmd2 runs as plain torch: its kernels need triton %d.%d, this is %s",
            *OLDEST_TRITON,
            triton.__version__,
        )
        return None
    from .triton import dispatch

    return dispatch


def _cuda(*inputs: Any) -> Outputs:
    arguments, dispatch = OpArguments(*inputs), load_dispatch()
    if dispatch is None or not dispatch.serves(arguments.x, arguments.y, arguments.kernel):
        # ``precision`` is a lower bound
        return _compute_in_torch(reference.mmd2, arguments, full_float32(arguments.x.device))
    outputs: Outputs = dispatch.mmd2_cuda(arguments)
    return outputs


def _fake(*inputs: Any) -> Outputs:
    arguments = OpArguments(*inputs)
    x, y = arguments.x, arguments.y
    dtype = reference.accumulator_dtype(x.dtype)
    return (
        x.new_empty(x.shape[:-2], dtype=dtype) if arguments.value else _empty(x),
        x.new_empty(x.shape, dtype=dtype) if arguments.grad_x else _empty(x),
        y.new_empty(y.shape, dtype=dtype) if arguments.grad_y else _empty(x),
    )


class _ScaleOnce(torch.autograd.Function):
    """Scale a gradient, and refuse to be differentiated: the gradient has no graph of its own."""

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
    def forward(ctx: Any, *inputs: Any) -> Outputs:
        outputs = _call_below_autograd(OpArguments(*inputs))
        _save(ctx, inputs, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return _scale_saved(ctx, grad_value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    """Keep what :func:`_scale_saved` reads; the first two inputs are the samples."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output)
    ctx.dtypes, ctx.inputs = tuple(sample.dtype for sample in inputs[:2]), len(inputs)


def _scale_saved(ctx: Any, grad_value: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients of all inputs: those of the samples that were computed with the value, scaled."""
    value, *gradients = ctx.saved_tensors
    grad_inputs: list[Tensor | None] = [None] * ctx.inputs
    for position, dtype in enumerate(ctx.dtypes):
        if grad_value is None or not ctx.needs_input_grad[position]:
            continue
        gradient = gradients[position]
        if torch.is_grad_enabled():
            # value is part of the graph, so a second derivative reaches _ScaleOnce.backward
            scaled = _ScaleOnce.apply(grad_value, gradient, value, dtype)
        else:
            scaled = _scale(grad_value, gradient, dtype)
        grad_inputs[position] = scaled
    return tuple(grad_inputs)


def _call_below_autograd(arguments: OpArguments) -> Outputs:
    with torch._C._AutoDispatchBelowAutograd():
        return mmd2(*arguments)


def _needs_gradient(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def _autograd(*inputs: Any) -> Outputs:
    arguments = OpArguments(*inputs)
    x, y = arguments.x, arguments.y
    if unpack_dual(x).tangent is not None or unpack_dual(y).tangent is not None:
        raise NotImplementedError(_NO_FORWARD_MODE)
    if _needs_gradient(arguments.bandwidth):
        raise ValueError("bandwidth: expected a tensor without requires_grad, got one with it")
    need_x, need_y = _needs_gradient(x), _needs_gradient(y)
    if not (arguments.value and (need_x or need_y)):
        return _call_below_autograd(arguments)
    requested_x, requested_y = arguments.grad_x, arguments.grad_y
    value, grad_x, grad_y = _Mmd2.apply(
        *arguments._replace(grad_x=requested_x or need_x, grad_y=requested_y or need_y)
    )
    return value, grad_x if requested_x else _empty(x), grad_y if requested_y else _empty(x)


def _autocast(*inputs: Any) -> Outputs:
    # mixed and half-precision inputs are read in their own dtype and summed in float32: only the
    # matrix products inside must be kept from autocast
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return mmd2(*inputs)


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def _move_to_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold_vmapped(size: int, in_dims: tuple[Any, ...], arguments: OpArguments) -> OpArguments:
    """Make the dimension that vmap hides the first batch dimension."""
    dims = dict(zip(arguments._fields, in_dims, strict=True))
    x = _move_to_front(arguments.x, dims["x"], size)
    y = _move_to_front(arguments.y, dims["y"], size)

    def fold(name: str) -> Tensor | None:
        tensor: Tensor | None = getattr(arguments, name)
        if tensor is None:
            return None
        tensor = _move_to_front(tensor, dims[name], size)
        if tensor.ndim == 1:  # one bandwidth for every batch element
            tensor = tensor.reshape(size, *[1] * (x.ndim - 3))
        return tensor.expand(x.shape[:-2])

    return arguments._replace(
        x=x,
        y=y,
        bandwidth=fold("bandwidth"),
        x_lengths=fold("x_lengths"),
        y_lengths=fold("y_lengths"),
    )


def _out_dims(arguments: OpArguments) -> tuple[int | None, ...]:
    requested = (arguments.value, arguments.grad_x, arguments.grad_y)
    return tuple(0 if flag else None for flag in requested)


def _vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Outputs, Any]:
    arguments = OpArguments(*inputs)
    return mmd2(*_fold_vmapped(info.batch_size, in_dims, arguments)), _out_dims(arguments)


class _TransformableMmd2(torch.autograd.Function):
    """``_Mmd2`` in the form that torch.func needs, which takes 17 us longer per call."""

    @staticmethod
    def forward(*inputs: Any) -> Outputs:
        return mmd2(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        _save(ctx, inputs, output)

    backward = _Mmd2.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise NotImplementedError(_NO_FORWARD_MODE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Outputs, Any]:
        arguments = OpArguments(*inputs)
        folded = _fold_vmapped(info.batch_size, in_dims, arguments)
        return _TransformableMmd2.apply(*folded), _out_dims(arguments)


def compute_value(arguments: OpArguments) -> Tensor:
    """Return the value alone, differentiable by autograd or torch.func."""
    transforming = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    if transforming and torch.is_grad_enabled():
        # which sample is differentiated is visible only below the transforms
        return _TransformableMmd2.apply(*arguments._replace(grad_x=True, grad_y=True))[0]
    return mmd2(*arguments)[0]


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
