"""The precision of float32 matrix products: torch's setting, and the op's own inside it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, cast

import torch

_setting_in_use = threading.RLock()


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
    if _matmul_settings(device).fp32_precision in ("none", "ieee"):
        yield
        return
    with _products(device, "ieee"):
        yield


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let a CPU round the factors of matrix products to bfloat16; sums and results are float32.

    For one product of oneDNN's: a product of bfloat16 tensors would round its result as well. The
    setting is the process's: until it is restored it holds for products in other threads, too.
    """
    with _products(torch.device("cpu"), "bf16"):
        yield


@cache
def has_bfloat16_products() -> bool:
    """Whether torch has such products on this CPU, with instructions for them; logged once."""
    logger = logging.getLogger("m3d_fast")
    missing = _find_missing()
    if missing:
        logger.warning('mmd2, precision="medium": computed in float32, as %s', missing)
    else:
        logger.info('mmd2, precision="medium": matrix products in bfloat16, sums in float32')
    return not missing


def _find_missing() -> str:
    """Say what bfloat16 products of float32 matrices lack here; empty if nothing."""
    if not _has_settings_by_backend():
        return f"bfloat16 products need torch 2.9, this is {torch.__version__}"
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return "oneDNN has no bfloat16 products here"
    # with AVX512-BF16 alone a gradient takes 1.2 times as long as in float32
    if not torch.cpu._is_amx_tile_supported():
        return "this CPU has no AMX instructions"
    return ""


@contextmanager
def _products(device: torch.device, setting: str) -> Iterator[None]:
    """Set the precision of products on ``device``, then restore what held before."""
    settings = _matmul_settings(device)
    # a second thread would else take the first one's setting for the process's, and restore that
    with _setting_in_use:
        before = settings.fp32_precision
        settings.fp32_precision = setting
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
