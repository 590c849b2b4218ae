"""Is there room on the device for the whole set?"""

import math
import os
from pathlib import Path

import torch

from .errors import DataError


def refuse_without_room(name: str, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse before any decoding what cannot be held as uint8 of ``shape`` on the device.

    Raises:
        DataError: if less memory is free than that.
    """
    needed, free = math.prod(shape), free_bytes(device)
    if needed > free:
        raise DataError(
            f"{name} needs {needed / 1e9:.2f} GB for {shape[0]} images of {shape[-1]} px, "
            f"{free / 1e9:.2f} GB are free on {device}: take a smaller --size or a smaller subset"
        )


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a CPU or CUDA device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            # unlike sysconf's free pages this counts what the file cache would give back
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS knows only how much there is in all
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
