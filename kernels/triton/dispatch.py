"""The op on a CUDA device: which family serves it, and the torch path where none can."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

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


def served(x: Tensor, y: Tensor, kernel: str) -> bool:
    """Whether Triton computes it, or torch: float64, linear (a difference of means), no rows."""
    return (
        torch.float64 not in (x.dtype, y.dtype)
        and kernel != "linear"
        and x.numel() > 0
        and refused(x.device) is None
    )


def mmd2_cuda(
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
    """The op, for what ``served`` says."""
    samples = Samples(_flat(x), _flat(y), _flat_lengths(x_lengths), _flat_lengths(y_lengths))
    call = _as_call(
        samples, bandwidth, kernel, parameters, unbiased, precision, (value, grad_x, grad_y)
    )
    with _on(x.device):
        result = FAMILIES[choose(call.problem)](call)
    shapes = (x.shape[:-2], x.shape, y.shape)
    value_, gradient_x, gradient_y = (
        part.view(shape) if asked and part is not None else x.new_empty(0, dtype=torch.float32)
        for part, shape, asked in zip(result, shapes, (value, grad_x, grad_y), strict=True)
    )
    return value_, gradient_x, gradient_y


def divided_mmd2_cuda(
    x: Tensor,
    y: Tensor,
    members: Tensor,
    bandwidth: Tensor | None,
    kernel: str,
    parameters: list[float],
    unbiased: bool,
    precision: str | None,
) -> Tensor:
    """MMD^2, (B,) float64, of divisions of the rows [x; y] into samples as large as x and y.

    Args:
        x: ``(N, D)``; with y, what ``served`` says.
        y: ``(M, D)``.
        members: ``(B, N + M)``, bool: the rows that make up the first sample.
        bandwidth, kernel, parameters, unbiased, precision: as the op takes them.
    """
    samples = Samples(_flat(x), _flat(y), None, None)
    call = _as_call(
        samples, bandwidth, kernel, parameters, unbiased, precision, (True, False, False)
    )
    with _on(x.device):
        return permute.divided_mmd2(call, members.contiguous())


def _as_call(
    samples: Samples,
    bandwidth: Tensor | None,
    kernel: str,
    parameters: list[float],
    unbiased: bool,
    precision: str | None,
    asked: tuple[bool, bool, bool],
) -> Call:
    classes, n, m, d = samples.sizes
    function = encode(kernel, parameters)
    problem = Problem(
        classes=classes,
        rows_x=n,
        rows_y=m,
        columns=d,
        kernel=function.KERNEL,
        precision=precision or torch.get_float32_matmul_precision(),
        value=asked[0],
        grad_x=asked[1],
        grad_y=asked[2],
        ragged=samples.x_lengths is not None or samples.y_lengths is not None,
    )
    return Call(
        samples=samples,
        function=function,
        mean_bandwidth=kernel == "gaussian_mean",
        bandwidth=None if bandwidth is None else bandwidth.reshape(-1).contiguous(),
        unbiased=unbiased,
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
