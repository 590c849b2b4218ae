"""Calibration: cross-entropy of the synthetic images under a trained network."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .combined import Term
from .protocol import Network


def cross_entropies(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every image under ``network``, ``(k, n)``, of images ``(k, n, ...)``."""
    logits = network.classify(network.embed(images))
    expected = labels[:, None].expand(logits.shape[:2])
    return F.cross_entropy(logits.movedim(-1, 1), expected, reduction="none")


class Calibration(Term):
    """Keeps images recognisable to networks trained on real data, which only a pool has.

    The term of DANCE (arXiv 2406.01063) and NCFM (arXiv 2502.20653): the mean over a class's images
    and, as the engine does for every loss, the sum over classes. Published code steps it by itself,
    after the step of the matching; here both share one step.
    """

    name: ClassVar[str] = "calibration"
    experts: ClassVar[bool] = True

    def read_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of every image under the trained network, ``(k, n)``."""
        return cross_entropies(network.expert, images, labels)

    def loss(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Its mean over a class's images, ``(k,)``."""
        return synthetic.mean(1)
