"""How exact the products inside the op are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep matrix products in float32 whatever the process allows (tf32, bf16); then put it back."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backend = cuda if device.type == "cuda" else cpu
    before = backend.fp32_precision
    if before in ("none", "ieee"):
        yield
        return
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        # "none" follows torch.backends.fp32_precision, where the setting may have come from
        backend.fp32_precision = "none"
        if backend.fp32_precision != before:
            backend.fp32_precision = before
