"""DM: distance between mean features (arXiv 2110.04181), the MMD of the linear kernel."""

from torch import Tensor

from ..embedding import Embedder
from ..kernels import Linear, mmd2

KERNEL = Linear()


def dm(embed: Embedder, real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance between the classes' mean real and synthetic features, ``(C,)``."""
    return mmd2(embed.real(real), embed.synthetic(synthetic), KERNEL)
