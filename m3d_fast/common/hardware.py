"""What this machine offers: devices, cores, free memory, bf16, a compiler; and what suits it."""

import ctypes
import math
import os
import resource
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from .checks import check_name
from .errors import UserError
from .processes import processes_on_machine

_CONTROL_GROUPS = Path("/sys/fs/cgroup")

PRECISIONS = ("bf16", "tf32", "fp32")

# glibc's numbers of these settings (malloc.h), and what both are set to, in bytes
_TRIM_THRESHOLD, _MMAP_THRESHOLD, LARGEST_KEPT = -1, -3, 2**27

# pixels through the network below which compiling takes longer than it saves: it takes 20 s and
# saves 0.2 ms per image of 28 px that is embedded, 0.65 ms where the network is trained (ConvNet-3,
# bf16, 2 CPU cores)
COMPILE_PAYS_PIXELS, COMPILE_PAYS_TRAINING_PIXELS = 100_000 * 28**2, 30_000 * 28**2


def resolve_device(device: str | None) -> str:
    """``device``, checked; without one, cuda if available, else cpu.

    Raises:
        UserError: for a device that this machine or torch does not have.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cuda", "cpu"):
        raise UserError(f"device: expected cuda or cpu, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was requested, but torch sees no CUDA GPU; use --device cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device: expected cuda, cuda:N or cpu, got {device!r}") from error
    if kind == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device: {device} was requested, but there are {count} CUDA GPUs")
    return device


def use_device(device: str) -> AbstractContextManager[object]:
    """Make a CUDA device the current one within the block; on a CPU nothing."""
    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()


def keep_freed_memory() -> None:
    """Make malloc keep what this process frees for its next allocation, up to 128 MB a block.

    glibc maps every block above 32 MB anew and returns it when freed; the first touch of its pages
    took a fifth of a training step (64 images of 28 px, ConvNet-3, compiled: 87 instead of 68 ms).
    Other C libraries, which have no such setting, are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(_TRIM_THRESHOLD, LARGEST_KEPT)


def default_precision(device: str) -> str:
    """bf16 on CUDA and on CPUs with bf16 instructions, else fp32."""
    if device.startswith("cuda"):
        return "bf16"
    return "bf16" if cpu_has_bf16() else "fp32"


def check_precision(precision: str, device: str) -> None:
    """Raise UserError for an arithmetic that does not exist, or not on ``device``."""
    check_name("precision", precision, PRECISIONS)
    if precision == "tf32" and not device.startswith("cuda"):
        raise UserError("precision: tf32 is a GPU's arithmetic; expected bf16 or fp32 on a CPU")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX); elsewhere it is emulated.

    No where ``ONEDNN_MAX_CPU_ISA`` keeps torch from it.
    """
    flags = Path("/proc/cpuinfo")
    if not onednn_takes_bf16():
        return False
    return flags.is_file() and any(
        name in flags.read_text() for name in ("avx512_bf16", "amx_bf16", "bf16 ")
    )


def onednn_takes_bf16() -> bool:
    """Whether torch is built with oneDNN, and that multiplies bf16 here, natively or emulated."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compile_pays(size: int, *, embedded: int = 0, trained: int = 0) -> bool:
    """Whether compiling saves time for this many images of ``size`` px, and is possible.

    Args:
        size: side in pixels.
        embedded: images through the network.
        trained: images that the network is trained on, each as often as it is.
    """
    embedded, trained = embedded * size**2, trained * size**2  # pixels
    enough = embedded / COMPILE_PAYS_PIXELS + trained / COMPILE_PAYS_TRAINING_PIXELS >= 1
    return enough and has_compiler()


def has_compiler() -> bool:
    """Whether this machine has what torch.compile needs on a CPU: g++ and Python's headers."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return shutil.which("g++") is not None and header.is_file()


def usable_cores() -> int:
    """Cores for this process: those it may run on, shared by torchrun's processes, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // processes_on_machine())


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a CPU or CUDA device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # /proc/meminfo does not know the limit of a container
    return int(min(_machine_free_bytes(), _container_free_bytes()))


def peak_bytes(device: torch.device) -> int:
    """Most memory so far that torch reserved on a CUDA device, or that this process held in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            # unlike that of getrusage, this peak does not include the process that started this one
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _machine_free_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            # unlike the free pages of sysconf, this includes the reclaimable file cache
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS reports only the total
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _container_free_bytes() -> float:
    """Bytes left below the limit of the control group (version 2 or 1); infinite without one."""
    for folder, limit_file, used_file, cached_name in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = _CONTROL_GROUPS / folder
        if not (group / limit_file).is_file() or not (group / used_file).is_file():
            continue
        limit = (group / limit_file).read_text().strip()
        if limit == "max":
            continue
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(statistics.get(cached_name, 0))
        return max(0, int(limit) - int((group / used_file).read_text()) + cached)
    return math.inf
