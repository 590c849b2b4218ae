"""The op on a CUDA device: whether Triton serves a call, and by which kernel family."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from subprocess import SubprocessError

import torch
from torch import Tensor
from triton.runtime import driver

from ..arguments import OpArguments
from ..precision import default_precision
from ..reference import Result
from . import permute, prepass, small, split, stream, tile, value
from .call import Call, Samples, encode_kernel_function, is_interpreted
from .configs import Chip, Config
from .families import Problem, choose_family

Outputs = tuple[Tensor, Tensor, Tensor]  # value, grad_x, grad_y; empty where not requested

LAUNCHERS: dict[str, Callable[[Call], Result]] = {
    "small": small.run,
    "split": split.run,
    "stream": stream.run,
    "tile": tile.run,
    "value": value.run,
}
CONFIGS: tuple[Config, ...] = (
    *prepass.CONFIGS,
    *tile.CONFIGS,
    *value.CONFIGS,
    *permute.CONFIGS,
    *small.CONFIGS,
    *split.CONFIGS,
    *stream.CONFIGS,
)
OLDEST_ARCHITECTURE = 80  # compute capability times ten: bfloat16 and asynchronous copies


@cache
def read_chip(device: torch.device) -> Chip:
    """Read what a device can run; the interpreter counts as the newest that we compile for."""
    if device.type != "cuda":
        return Chip(90, 232448)
    properties = torch.cuda.get_device_properties(device)
    architecture = 10 * properties.major + properties.minor
    return Chip(architecture, properties.shared_memory_per_block_optin)


@cache
def explain_refusal(device: torch.device) -> str | None:
    """Say why Triton cannot serve a device, and log it once; None if it can."""
    reason, level = None, logging.INFO
    if device.type != "cuda" and not is_interpreted():
        reason = f"{device} is not a CUDA device"
    elif torch.version.hip:
        reason = "the kernels are for CUDA, not for ROCm"
    elif read_chip(device).architecture < OLDEST_ARCHITECTURE:
        reason = f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    elif device.type == "cuda" and (fault := _find_driver_fault()):
        reason, level = fault, logging.WARNING  # the user can mend this one
    if reason:
        logging.getLogger("m3d_fast").log(level, "mmd2 runs as plain torch: %s", reason)
    return reason


def _find_driver_fault() -> str | None:
    """Start Triton's driver, which compiles C code on its first use on a machine."""
    try:
        start_driver()
    except (AssertionError, ImportError, OSError, RuntimeError, SubprocessError) as error:
        # AssertionError: Triton's own, where it does not find libcuda.so
        return (
            f"Triton's driver does not start ({error}): it needs libcuda.so, a C compiler and"
            " Python.h, the last two from packages such as gcc and python3-dev"
        )
    return None


def start_driver() -> None:
    """Load Triton's driver."""
    driver.active.get_current_target()


def serves(x: Tensor, y: Tensor, kernel: str) -> bool:
    """Whether Triton serves a call: not float64, not linear (plain means), not without rows."""
    return (
        torch.float64 not in (x.dtype, y.dtype)
        and kernel != "linear"
        and x.numel() > 0
        and explain_refusal(x.device) is None
    )


def mmd2_cuda(arguments: OpArguments) -> Outputs:
    """Compute the op, for arguments that ``serves`` accepts."""
    x, y = arguments.x, arguments.y
    call = _build_call(arguments)
    with _select_device(x.device):
        result = LAUNCHERS[choose_family(call.problem)](call)
    shapes = (x.shape[:-2], x.shape, y.shape)
    requested = (arguments.value, arguments.grad_x, arguments.grad_y)
    value, grad_x, grad_y = (
        part.view(shape) if flag and part is not None else x.new_empty(0, dtype=torch.float32)
        for part, shape, flag in zip(result, shapes, requested, strict=True)
    )
    return value, grad_x, grad_y


def permuted_mmd2_cuda(members: Tensor, arguments: OpArguments) -> Tensor:
    """Compute MMD^2, (B,) float64, of permutations of the rows [x; y].

    Args:
        members: ``(B, N + M)``, bool: whether a row belongs to the first sample; N do in every
            permutation.
        arguments: x ``(N, D)`` and y ``(M, D)``, which ``serves`` accepts; the value alone.
    """
    call = _build_call(arguments)
    with _select_device(members.device):
        return permute.compute_permuted_mmd2(call, members.contiguous())


def _build_call(arguments: OpArguments) -> Call:
    samples = Samples(
        _flatten_batch(arguments.x),
        _flatten_batch(arguments.y),
        _flatten_lengths(arguments.x_lengths),
        _flatten_lengths(arguments.y_lengths),
    )
    classes, n, m, d = samples.sizes
    problem = Problem(
        classes=classes,
        rows_x=n,
        rows_y=m,
        columns=d,
        precision=arguments.precision or default_precision(arguments.x.device),
        value=arguments.value,
        grad_x=arguments.grad_x,
        grad_y=arguments.grad_y,
    )
    bandwidth = arguments.bandwidth
    return Call(
        samples=samples,
        function=encode_kernel_function(arguments.kernel, arguments.parameters),
        mean_bandwidth=arguments.kernel == "gaussian_mean",
        bandwidth=None if bandwidth is None else bandwidth.reshape(-1).contiguous(),
        unbiased=arguments.unbiased,
        problem=problem,
        chip=read_chip(samples.x.device),
    )


def _select_device(device: torch.device) -> AbstractContextManager[object]:
    # Triton launches on the current device, wherever its arguments are
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _flatten_batch(points: Tensor) -> Tensor:
    """(..., n, D) as (C, n, D) whose last dimension is contiguous; a view where possible."""
    points = points if points.stride(-1) == 1 or points.shape[-1] == 1 else points.contiguous()
    return points.reshape(-1, *points.shape[-2:])


def _flatten_lengths(lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else lengths.reshape(-1).contiguous()
