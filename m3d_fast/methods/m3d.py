"""M3D: maximum mean discrepancy of features (arXiv 2312.15927, eq. 9)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.profiler import record_function

from ..kernels import mmd2_and_grad
from ..presets import Preset, Setting, shared_preset
from .kernels import KernelOptions
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
        """The MMD of the last features, its gradient in closed form."""
        (features,) = synthetic.each
        with record_function("MMD"):
            losses, gradient = mmd2_and_grad(
                real.each[0], features.detach(), self.build_kernel(), value=value
            )
        return None if losses is None else losses[:, None], (features * gradient).sum()
