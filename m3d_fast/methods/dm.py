"""DM: distance between mean features (arXiv 2110.04181), the MMD of the linear kernel."""

from torch import Tensor

from ..kernels import Linear
from .matching import match_features
from .protocol import Embedder, Views

KERNEL = Linear()


def dm(embed: Embedder, real: Views, synthetic: Views, value: bool) -> tuple[Tensor | None, Tensor]:
    """Squared distance between the classes' mean real and synthetic features."""
    return match_features(embed, real, synthetic, KERNEL, value)
