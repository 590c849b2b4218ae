"""How two samples of features are compared: by their means, or by an MMD."""

from dataclasses import dataclass, fields

from torch import Tensor
from torch.profiler import record_function

from ..common.checks import check_name
from ..common.errors import UserError
from ..kernels import mmd2_and_grad
from .kernels import KernelOptions
from .protocol import distance_of_means

MATCHINGS = ("mean", "mmd")


def mmd_losses(
    kernel: KernelOptions, real: Tensor, synthetic: Tensor, value: bool
) -> tuple[Tensor | None, Tensor]:
    """MMD^2 of every class, its gradient in closed form.

    Args:
        kernel: of the MMD.
        real: ``(k, n, D)``.
        synthetic: ``(k, m, D)``, differentiable.
        value: whether to compute the values.

    Returns:
        The values ``(k,)`` without gradient (None without ``value``), and a scalar whose gradient
        is that of their sum.
    """
    with record_function("MMD"):
        losses, gradient = mmd2_and_grad(
            real, synthetic.detach(), kernel.build_kernel(), value=value
        )
    return losses, (synthetic * gradient).sum()


@dataclass(frozen=True)
class FeatureMatching(KernelOptions):
    """A distance of last features, which M3D's loss can replace (M3D, arXiv 2312.15927, table 5).

    Attributes:
        matching: "mean", the squared distance of the mean features, or "mmd", M3D's loss, whose
            kernel the other options describe.
    """

    matching: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("matching", self.matching, MATCHINGS)
        if self.matching == "mean":
            for field in fields(KernelOptions):
                if getattr(self, field.name) != field.default:
                    raise UserError(
                        f"{field.name}: a mean has no kernel; add --set matching=mmd or leave out "
                        f"{field.name}"
                    )

    def match(self, real: Tensor, synthetic: Tensor, value: bool) -> tuple[Tensor | None, Tensor]:
        """Losses ``(k,)`` of features ``(k, n, D)`` and ``(k, m, D)``, as :func:`mmd_losses`."""
        if self.matching == "mmd":
            return mmd_losses(self, real, synthetic, value)
        losses = distance_of_means(real, synthetic)
        return losses.detach(), losses.sum()
