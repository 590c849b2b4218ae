"""DM with higher moments: what M3D's paper compares its kernel with (arXiv 2312.15927, table 1)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..common.errors import UserError
from ..presets import Preset, Setting, dm_preset
from .protocol import Method, Reading, distance_of_means, total


@dataclass(frozen=True)
class Moments(Method):
    """Squared distances of the first, second and third raw moments of the last features.

    The paper states neither coefficients nor whether products of different features count. Ours
    are 1, at which the three distances are of one size, and moments are those of each feature.

    Attributes:
        second: weight of the second moments, relative to the means.
        third: weight of the third moments.
    """

    terms: ClassVar[tuple[str, ...]] = ("mean", "second", "third")

    second: float = 1.0
    third: float = 1.0

    def __post_init__(self) -> None:
        for name in ("second", "third"):
            weight = getattr(self, name)
            if not 0 <= weight < math.inf:
                raise UserError(f"{name}: expected a number of at least 0, got {weight}")

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """DM's, whose term it extends."""
        return dm_preset(setting)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distances of the last features."""
        x, y = real.each[0], synthetic.each[0]
        weights = (1.0, self.second, self.third)
        return total(
            [
                weight * distance_of_means(x**power, y**power)
                for power, weight in enumerate(weights, start=1)
            ]
        )
