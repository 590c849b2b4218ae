"""Memory that a data set may take."""

import torch

from ..common.errors import DataError
from ..common.hardware import free_bytes
from ..common.processes import processes_on_machine


def check_free_memory(what: str, needed: int, device: torch.device, advice: str) -> None:
    """Raise DataError, with ``advice``, unless ``needed`` bytes are free on the device."""
    free = free_bytes(device)
    if needed > free:
        sizes = f"{needed / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are free"
        raise DataError(f"{what} needs {sizes}: {advice}")


def spare_bytes(device: torch.device) -> int:
    """Bytes that may be kept for a whole run: at least half of the memory stays free.

    On a GPU half of the total, for networks and activations; in RAM half of what is free, shared
    by the processes that ``torchrun`` started on this machine.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, free - total // 2)
    return free_bytes(device) // 2 // processes_on_machine()
