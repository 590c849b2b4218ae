"""Is there room on the device for the whole set?"""

import math
import os
from pathlib import Path

import torch

from .errors import DataError

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


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


def spare_bytes(device: torch.device) -> int:
    """Bytes that may be kept for a whole run: at least half of the memory stays free.

    On a GPU half of all there is, for networks and activations; in RAM half of what is free, shared
    by the processes that ``torchrun`` started on this machine.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, free - total // 2)
    return free_bytes(device) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a CPU or CUDA device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # a container's limit is not in /proc/meminfo
    return int(min(_free_of_machine(), _free_of_container()))


def _free_of_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            # unlike sysconf's free pages this counts what the file cache would give back
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS knows only how much there is in all
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _free_of_container() -> float:
    """Bytes left under the limit of the control group, version 2 or 1; infinite without one."""
    for folder, limit, used, given_back in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = _CONTROL_GROUPS / folder
        if not (group / limit).is_file() or not (group / used).is_file():
            continue
        most = (group / limit).read_text().strip()
        if most == "max":
            continue
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = int(statistics.get(given_back, 0))
        return max(0, int(most) - int((group / used).read_text()) + cached)
    return math.inf
