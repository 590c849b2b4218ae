"""Condensation objectives by name.

A method takes an embedder and the augmented real and synthetic images of some classes,
``(C, N, channels, H, W)`` and ``(C, M, channels, H, W)``, and returns one loss per class ``(C,)``,
differentiable in the synthetic images.
"""

from collections.abc import Callable

from torch import Tensor

from ..embedding import Embedder
from .dm import dm
from .m3d import m3d

Method = Callable[[Embedder, Tensor, Tensor], Tensor]

METHODS: dict[str, Method] = {"m3d": m3d, "dm": dm}
