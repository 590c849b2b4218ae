"""Normalisation: pixels as networks see them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalisation:
    """Minus the mean of a data set, divided by its standard deviation; differentiable.

    Args:
        mean, std: per channel, of pixels in [0, 1].
        device: of the images.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: str | torch.device = "cpu"
    ) -> None:
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(..., C, H, W)``, bytes or float in [0, 1], normalised: float."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self._mean) / self._std

    def undo(self, normalised: Tensor) -> Tensor:
        """Images in [0, 1] of normalised ones."""
        return normalised * self._std + self._mean
