"""Memory that a data set may take."""

import math

import torch

from ..common.errors import DataError
from ..common.hardware import free_bytes
from ..common.processes import processes_on_machine


def check_free_memory(name: str, shape: tuple[int, ...], device: torch.device) -> None:
    """Refuse, before any decoding, images that cannot be held as uint8 of ``shape`` on the device.

    Raises:
        DataError: if less memory is free.
    """
    needed, free = math.prod(shape), free_bytes(device)
    if needed > free:
        raise DataError(
            f"{name} needs {needed / 1e9:.2f} GB for {shape[0]} images of {shape[-1]} px, "
            f"{free / 1e9:.2f} GB are free on {device}: take a smaller --size or a smaller subset"
        )


def spare_bytes(device: torch.device) -> int:
    """Bytes that may be kept for a whole run: at least half of the memory stays free.

    On a GPU half of the total, for networks and activations; in RAM half of what is free, shared
    by the processes that ``torchrun`` started on this machine.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, free - total // 2)
    return free_bytes(device) // 2 // processes_on_machine()
