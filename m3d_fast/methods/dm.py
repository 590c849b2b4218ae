"""DM: distance between mean features (arXiv 2110.04181), the MMD of the linear kernel."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..presets import Preset, Setting, dm_preset
from .matching import FeatureMatching
from .protocol import Method, Reading


@dataclass(frozen=True)
class DM(FeatureMatching, Method):
    """Squared distance of the classes' mean real and synthetic features.

    With ``matching=mmd`` it is M3D's loss in DM's setting (M3D, table 5).
    """

    terms: ClassVar[tuple[str, ...]] = ("mean",)

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return dm_preset(setting)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance of the last features."""
        losses, objective = self.match(real.each[0], synthetic.each[0], value)
        return None if losses is None else losses[:, None], objective
