"""What suits this machine: device, precision, whether compiling pays."""

import shutil
import sysconfig
from pathlib import Path

import torch

from .errors import UserError

PRECISIONS = ("bf16", "tf32", "fp32")

# pixels through the network below which compiling takes longer than it saves: 20 s against 0.2 ms
# per image of 28 px (ConvNet-3, bf16, 2 CPU cores)
COMPILE_PAYS_PIXELS = 100_000 * 28**2


def resolve_device(device: str | None) -> str:
    """``device``, or the best there is.

    Raises:
        UserError: for a device this machine or torch does not have.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cuda", "cpu"):
        raise UserError(f"device: expected cuda or cpu, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch sees no CUDA GPU; use --device cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device: expected cuda, cuda:N or cpu, got {device!r}") from error
    if kind == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device: {device} was asked for, but there are {count} CUDA GPUs")
    return device


def default_precision(device: str) -> str:
    """bf16 on CUDA and on CPUs with bf16 instructions, else fp32."""
    if device.startswith("cuda"):
        return "bf16"
    return "bf16" if cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX); elsewhere it is emulated."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(
        name in flags.read_text() for name in ("avx512_bf16", "amx_bf16", "bf16 ")
    )


def compile_pays(images: int, size: int) -> bool:
    """Whether so many images of ``size`` px are worth compiling for, and a compiler is there."""
    return images * size**2 >= COMPILE_PAYS_PIXELS and has_compiler()


def has_compiler() -> bool:
    """Whether torch.compile finds what it needs on a CPU: g++ and Python's headers."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return shutil.which("g++") is not None and header.is_file()
