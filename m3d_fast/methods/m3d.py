"""M3D: maximum mean discrepancy under a mixture of Gaussian kernels (arXiv 2312.15927, eq. 9)."""

from torch import Tensor

from ..kernels import Gaussian
from .matching import match_features
from .protocol import Embedder, Views

# five Gaussians around the mean pairwise squared distance of the stacked features
KERNEL = Gaussian(bandwidth="mean", scales=(0.25, 0.5, 1.0, 2.0, 4.0))


def m3d(
    embed: Embedder, real: Views, synthetic: Views, value: bool
) -> tuple[Tensor | None, Tensor]:
    """Squared MMD between the classes' real and synthetic features."""
    return match_features(embed, real, synthetic, KERNEL, value)
