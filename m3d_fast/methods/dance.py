"""DANCE: mean features under pooled networks, calibrated by a trained one (arXiv 2406.01063)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..common.checks import check_positive
from ..presets import Preset, Setting, dance_preset
from .calibration import cross_entropies
from .protocol import Method, Network, Reading, distance_of_means, total


@dataclass(frozen=True)
class DANCE(Method):
    """Squared distance of mean features, and the cross-entropy under a trained network.

    The network that embeds lies between one as it was drawn and the same one trained.

    Attributes:
        calibration: weight of the cross-entropy.
    """

    terms: ClassVar[tuple[str, ...]] = ("mean", "calibration")
    networks_from: ClassVar[str] = "pool"
    experts: ClassVar[bool] = True

    calibration: float = 1.0

    def __post_init__(self) -> None:
        check_positive("calibration", self.calibration)

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return dance_preset(setting)

    def probe_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """Last features, and the cross-entropy of every image under the trained network."""
        features = network.embed(images)
        return Reading((features, cross_entropies(network.expert, images, labels)))

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance of the means, and the mean cross-entropy."""
        matched = distance_of_means(real.each[0], synthetic.each[0])
        return total([matched, self.calibration * synthetic.each[1].mean(1)])
