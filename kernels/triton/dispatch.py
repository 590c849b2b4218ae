"""The op on a CUDA device: which family serves it, and the torch path where none can."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from ..arguments import OpArguments
from . import permute, small, split, stream, tile, value
from .call import Call, Result, Samples
from .encode import encode, interpreting
from .families import Problem, choose

Outputs = tuple[Tensor, Tensor, Tensor]  # value, grad_x, grad_y; empty where not asked for

FAMILIES: dict[str, Callable[[Call], Result]] = {
    "small": small.run,
    "split": split.run,
    "stream": stream.run,
    "tile": tile.run,
    "value": value.run,
}
OLDEST = 80  # compute capability times ten: bfloat16 and asynchronous copies


@cache
def architecture(device: torch.device) -> int:
    """Compute capability times ten; the interpreter stands for the newest we compile for."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def refused(device: torch.device) -> str | None:
    """Why Triton cannot serve a device, logged once; None if it can."""
    reason = None
    if device.type != "cuda" and not interpreting():
        reason = f"{device} is not a CUDA device"
    elif torch.version.hip:
        reason = "the kernels are for CUDA, not for ROCm"
    elif architecture(device) < OLDEST:
        reason = f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if reason:
        logging.getLogger("m3d_fast").info("mmd2 runs as plain torch: %s", reason)
    return reason


def serves(x: Tensor, y: Tensor, kernel: str) -> bool:
    """Whether Triton computes it, or torch: float64, linear (a difference of means), no rows."""
    return (
        torch.float64 not in (x.dtype, y.dtype)
        and kernel != "linear"
        and x.numel() > 0
        and refused(x.device) is None
    )


def mmd2_cuda(arguments: OpArguments) -> Outputs:
    """The op, for what ``serves`` says."""
    x, y = arguments.x, arguments.y
    samples = Samples(
        _flat(x), _flat(y), _flat_lengths(arguments.x_lengths), _flat_lengths(arguments.y_lengths)
    )
    call = _as_call(samples, arguments)
    with _on(x.device):
        result = FAMILIES[choose(call.problem)](call)
    shapes = (x.shape[:-2], x.shape, y.shape)
    wanted = (arguments.value, arguments.grad_x, arguments.grad_y)
    value, gradient_x, gradient_y = (
        part.view(shape) if asked and part is not None else x.new_empty(0, dtype=torch.float32)
        for part, shape, asked in zip(result, shapes, wanted, strict=True)
    )
    return value, gradient_x, gradient_y


def permuted_mmd2_cuda(members: Tensor, arguments: OpArguments) -> Tensor:
    """MMD^2, (B,) float64, of permutations of the rows [x; y].

    Args:
        members: ``(B, N + M)``, bool: the rows that make up the first sample, N of them.
        arguments: x ``(N, D)`` and y ``(M, D)``, for what ``serves`` says; the value alone.
    """
    call = _as_call(Samples(_flat(arguments.x), _flat(arguments.y), None, None), arguments)
    with _on(members.device):
        return permute.divided_mmd2(call, members.contiguous())


def _as_call(samples: Samples, arguments: OpArguments) -> Call:
    classes, n, m, d = samples.sizes
    function = encode(arguments.kernel, arguments.parameters)
    problem = Problem(
        classes=classes,
        rows_x=n,
        rows_y=m,
        columns=d,
        kernel=function.KERNEL,
        precision=arguments.precision or torch.get_float32_matmul_precision(),
        value=arguments.value,
        grad_x=arguments.grad_x,
        grad_y=arguments.grad_y,
    )
    bandwidth = arguments.bandwidth
    return Call(
        samples=samples,
        function=function,
        mean_bandwidth=arguments.kernel == "gaussian_mean",
        bandwidth=None if bandwidth is None else bandwidth.reshape(-1).contiguous(),
        unbiased=arguments.unbiased,
        problem=problem,
        architecture=architecture(samples.x.device),
    )


def _on(device: torch.device) -> AbstractContextManager[object]:
    # Triton launches on the current device, whatever its arguments live on
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _flat(points: Tensor) -> Tensor:
    """(..., n, D) as (C, n, D) whose last dimension is contiguous; a view where it can be."""
    points = points if points.stride(-1) == 1 or points.shape[-1] == 1 else points.contiguous()
    return points.reshape(-1, *points.shape[-2:])


def _flat_lengths(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.reshape(-1).contiguous()
