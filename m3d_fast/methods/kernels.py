"""The kernel of an MMD, as options of a method."""

from dataclasses import dataclass

from ..common.checks import check_name, check_positive
from ..common.errors import UserError
from ..kernels import Gaussian, Linear, Polynomial

KERNELS = ("gaussian", "linear", "polynomial", "gammas")


@dataclass(frozen=True)
class KernelOptions:
    """The kernel of the MMD (M3D, arXiv 2312.15927, section 3 and figure 6b).

    Attributes:
        kernel: "gaussian" is a sum of Gaussians around the bandwidth; "gammas" one of
            ``exp(-gamma |a-b|^2)``, which the paper's code calls laplace; "polynomial" is
            ``(a.b + coef0)^degree``; "linear" ``a.b``.
        bandwidth: of "gaussian": "mean", the mean squared distance of the stacked features, or a
            number, ``2 sigma^2``.
        scales: of "gaussian": factors of the bandwidth.
        gammas: of "gammas".
        degree, coef0: of "polynomial".
    """

    kernel: str = "gaussian"
    bandwidth: str | float = "mean"
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    gammas: tuple[float, ...] = (0.1, 1.0, 5.0)
    degree: int = 2
    coef0: float = 1.0

    def __post_init__(self) -> None:
        check_name("kernel", self.kernel, KERNELS)
        for name in ("scales", "gammas"):
            numbers = getattr(self, name)
            if not numbers:
                raise UserError(f"{name}: expected at least one number above 0, got none")
            for number in numbers:
                check_positive(name, number)
        check_positive("degree", self.degree)
        if isinstance(self.bandwidth, str):
            check_name("bandwidth", self.bandwidth, ("mean",))
        else:
            check_positive("bandwidth", self.bandwidth)

    def build_kernel(self) -> Gaussian | Linear | Polynomial:
        """The kernel function."""
        if self.kernel == "linear":
            return Linear()
        if self.kernel == "polynomial":
            return Polynomial(degree=self.degree, gamma=1.0, coef0=self.coef0)
        if self.kernel == "gammas":
            return Gaussian(bandwidth=1.0, scales=tuple(1 / gamma for gamma in self.gammas))
        return Gaussian(bandwidth=self.bandwidth, scales=self.scales)
