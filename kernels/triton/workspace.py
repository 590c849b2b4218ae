"""Where the kernels' memory comes from."""

import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that the kernels fill; tests put NaN in and around it."""
    return torch.empty(shape, dtype=dtype, device=device)
