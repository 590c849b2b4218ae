"""DataDAM: spatial attention of every layer, and mean features (arXiv 2310.00093)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..common.checks import check_positive
from ..presets import Preset, Setting, datadam_preset
from .protocol import Method, Network, Reading, distance_of_means, total


def attention(maps: Tensor, power: float) -> Tensor:
    """Where the maps ``(k, n, C, h, w)`` are large: ``sum_C |map|^power``, of norm 1.

    Returns:
        Its mean over a class's images, ``(k, h * w)`` float32.
    """
    strength = maps.float().abs()
    if power != 1:
        # maps are 0 wherever the ReLU is off; the gradient of a power below 1 has no limit there
        strength = strength.clamp_min(1e-12).pow(power)
    return F.normalize(strength.sum(2).flatten(2), dim=2).mean(1)


@dataclass(frozen=True)
class DataDAM(Method):
    """Squared distance of mean attention maps, after every block's ReLU but the last, and of the
    mean last features (equations 2 to 5).

    Attributes:
        weight: of the attention's distance; of the public code, 100.
        mean_weight: of the mean features' distance, as a part of ``weight``.
        power: of the activation in the attention, p in the paper, 1 in the public code's runs.
    """

    terms: ClassVar[tuple[str, ...]] = ("attention", "mean")

    weight: float = 100.0
    mean_weight: float = 0.01
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "mean_weight", "power"):
            check_positive(name, getattr(self, name))

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return datadam_preset(setting)

    def probe(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """Last features, and the mean attention of every block but the last."""
        maps = network.maps(images, at="relu")
        mean = tuple(attention(part, self.power) for part in maps[:-1])
        return Reading((network.embed(images),), mean)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance of attention, summed over layers, and of the means."""
        pairs = zip(real.mean, synthetic.mean, strict=True)
        layers = [(x - y).square().sum(1) for x, y in pairs]
        means = distance_of_means(real.each[0], synthetic.each[0])
        summed = sum(layers[1:], layers[0])
        return total([self.weight * summed, self.weight * self.mean_weight * means])
