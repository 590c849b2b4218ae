"""DM: distance between mean features (arXiv 2110.04181), the MMD of the linear kernel."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..presets import Preset, Setting, dm_preset
from .protocol import Method, Reading, distance_of_means, total


@dataclass(frozen=True)
class DM(Method):
    """Squared distance of the classes' mean real and synthetic features."""

    terms: ClassVar[tuple[str, ...]] = ("mean",)

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return dm_preset(setting)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance of the last features."""
        return total([distance_of_means(real.each[0], synthetic.each[0])])
