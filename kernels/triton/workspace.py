"""Memory for the outputs and the workspace of kernels."""

import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate memory that kernels fill; tests surround it with NaN."""
    return torch.empty(shape, dtype=dtype, device=device)
