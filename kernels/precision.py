"""How exact the products inside the op are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep matrix products in float32 whatever the process allows, then put that back."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    backend = backend.matmul
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
