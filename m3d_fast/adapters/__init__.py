"""The op in the manners of other libraries; each adapter is imported on first use."""

from typing import TYPE_CHECKING

from ..lazy import import_on_first_use

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
__getattr__ = import_on_first_use(__name__, _HOMES)
