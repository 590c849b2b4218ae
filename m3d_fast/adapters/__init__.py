"""The op in the manners of other libraries; each adapter is imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptation import MMDAdaptationLoss as MMDAdaptationLoss
    from .drift import MMDDrift as MMDDrift
    from .image_metrics import CLIPMaximumMeanDiscrepancy as CLIPMaximumMeanDiscrepancy
    from .image_metrics import KernelInceptionDistance as KernelInceptionDistance
    from .samples_loss import SamplesLoss as SamplesLoss

_HOMES = {
    "CLIPMaximumMeanDiscrepancy": "image_metrics",
    "KernelInceptionDistance": "image_metrics",
    "MMDAdaptationLoss": "adaptation",
    "MMDDrift": "drift",
    "SamplesLoss": "samples_loss",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
