"""The precision of float32 matrix products: torch's setting, and full float32 inside the op."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch


def _has_settings_by_backend() -> bool:
    """Whether torch has ``fp32_precision`` for each backend, as from 2.9 on."""
    return hasattr(torch.backends, "fp32_precision")


def _matmul_settings(device: torch.device) -> Any:
    """Return torch's settings of matrix products on a kind of device."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul


def default_precision(device: torch.device) -> Literal["highest", "high", "medium"]:
    """Return the precision that torch allows for matrix products on ``device``.

    Reads ``torch.backends.<cuda or mkldnn>.matmul.fp32_precision``, which reflects both
    ``torch.set_float32_matmul_precision`` and ``torch.backends.fp32_precision``.
    """
    if not _has_settings_by_backend():
        return _read_global_precision()
    setting = _matmul_settings(device).fp32_precision
    if setting == "bf16":
        return "medium"
    if setting != "tf32":
        return "highest"
    try:
        # on CUDA "medium" also sets tf32: only this function tells it from "high"
        medium = torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:
        # raised when the setting was made through torch.backends
        medium = False
    return "medium" if medium else "high"


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute matrix products in full float32 whatever the process allows, then restore that."""
    if not _has_settings_by_backend():
        with _highest_global_precision():
            yield
        return
    settings = _matmul_settings(device)
    before = settings.fp32_precision
    if before in ("none", "ieee"):
        yield
        return
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        # "none" follows torch.backends.fp32_precision, where the setting may have come from
        settings.fp32_precision = "none"
        if settings.fp32_precision != before:
            settings.fp32_precision = before


def _read_global_precision() -> Literal["highest", "high", "medium"]:
    return cast(Literal["highest", "high", "medium"], torch.get_float32_matmul_precision())


@contextmanager
def _highest_global_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
