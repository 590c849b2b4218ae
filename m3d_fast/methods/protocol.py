"""The inputs and outputs of a condensation objective."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Views(NamedTuple):
    """Images of some classes with the augmentation draw of each.

    Attributes:
        images: ``(C, n, channels, H, W)``, uint8 or float in [0, 1].
        draws: ``(C, UNIFORMS)``.
    """

    images: Tensor
    draws: Tensor


class Embedder(Protocol):
    """Maps images to features by the network of the iteration."""

    def real(self, views: Views) -> Tensor:
        """Features of real images, ``(C, n, D)`` float32, without gradient."""
        ...

    def synthetic(self, views: Views) -> Tensor:
        """Features of synthetic images, ``(C, n, D)`` float32, differentiable in the images."""
        ...


Method = Callable[[Embedder, Views, Views, bool], tuple[Tensor | None, Tensor]]
