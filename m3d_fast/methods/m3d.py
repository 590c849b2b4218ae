"""M3D: maximum mean discrepancy of features (arXiv 2312.15927, eq. 9)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..presets import Preset, Setting, shared_preset
from .kernels import KernelOptions
from .matching import mmd_losses
from .protocol import Method, Reading


@dataclass(frozen=True)
class M3D(KernelOptions, Method):
    """Squared MMD between the classes' real and synthetic features, by default under five Gaussians
    around the mean squared distance of the stacked features.
    """

    terms: ClassVar[tuple[str, ...]] = ("mmd2",)

    @classmethod
    def paper_preset(cls, setting: Setting) -> Preset:
        """As published: one learning rate, 1 or (ImageNet) 0.1, whatever the images per class."""
        preset = shared_preset(setting)
        return replace(preset, lr_img=preset.lr_img / setting.ipc)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The MMD of the last features."""
        losses, objective = mmd_losses(self, real.each[0], synthetic.each[0], value)
        return None if losses is None else losses[:, None], objective
