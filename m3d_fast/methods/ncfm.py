"""NCFM: characteristic functions of normalised features (arXiv 2502.20653)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ..common.checks import check_positive
from ..common.errors import UserError
from ..kernels import Gaussian, mmd2_and_grad
from ..presets import Preset, Setting, ncfm_preset
from .calibration import cross_entropies
from .protocol import Method, Network, Reading

SCALE = 300.0  # of the loss, as in the public code
EPS = 1e-12  # of what is under a root, whose gradient has no limit at 0; as in the public code
EXACT_KERNEL = Gaussian(bandwidth=2.0, scales=(1.0,))  # sigma 1


@dataclass(frozen=True)
class NCFM(Method):
    """Distance of the characteristic functions of real and synthetic features, and calibration.

    Features have norm 1. At frequencies t of N(0, I), the function of a sample is the mean of
    ``exp(i t.x)``; the loss is 300 times the mean over t of
    ``sqrt(alpha * (|f| - |g|)^2 + beta * 2 |f| |g| (1 - cos(phase difference)))``. One draw of
    frequencies serves all classes of an iteration (the public code draws anew for every class); the
    paper's network that proposes frequencies is left out.

    With ``exact`` no frequencies are drawn: at alpha = beta the mean square of the same distance is
    alpha times the squared MMD under a Gaussian of sigma 1, and the loss is 300 times its root,
    which bounds the published one from above and differs from it by the spread over t alone.

    Attributes:
        exact: whether to take the kernel instead of frequencies.
        frequencies: number of them; published with 1,024 to 4,096.
        alpha: weight of the amplitudes.
        beta: weight of the phases.
        calibration: weight of the cross-entropy under a trained network.
    """

    terms: ClassVar[tuple[str, ...]] = ("characteristic", "calibration")
    networks_from: ClassVar[str] = "pool"
    experts: ClassVar[bool] = True

    exact: bool = False
    frequencies: int = 1024
    alpha: float = 0.5
    beta: float = 0.5
    calibration: float = 1.0

    def __post_init__(self) -> None:
        for name in ("frequencies", "alpha", "beta", "calibration"):
            check_positive(name, getattr(self, name))
        if self.exact and self.alpha != self.beta:
            raise UserError(
                f"alpha, beta: expected the same number for exact, got {self.alpha} and {self.beta}"
            )

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published, but for the optimiser."""
        return ncfm_preset(setting)

    def noise_shape(self, features: int) -> tuple[int, ...]:
        """The frequencies, one row each."""
        return (0,) if self.exact else (self.frequencies, features)

    def probe(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """Normalised features, or real and imaginary part of their characteristic function."""
        features = F.normalize(network.embed(images), dim=-1)
        if self.exact:
            return Reading((features,))
        angles = features @ network.noise.T
        return Reading(mean=(angles.cos().mean(1), angles.sin().mean(1)))

    def probe_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """The same, and the cross-entropy of every image under the trained network."""
        each, mean = self.probe(network, images, labels)
        return Reading((*each, cross_entropies(network.expert, images, labels)), mean)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance of the characteristic functions, and the mean cross-entropy."""
        if self.exact:
            matched, objective = self._compare_exactly(real.each[0], synthetic.each[0])
        else:
            matched = self._compare_functions(real.mean, synthetic.mean)
            matched, objective = matched.detach(), matched.sum()
        errors = self.calibration * synthetic.each[-1].mean(1)
        return torch.stack([matched, errors.detach()], 1), objective + errors.sum()

    def _compare_functions(self, real: tuple[Tensor, ...], synthetic: tuple[Tensor, ...]) -> Tensor:
        """Distance ``(k,)`` of functions given by real and imaginary part, ``(k, frequencies)``."""
        sizes = [(a.square() + b.square()).clamp_min(EPS).sqrt() for a, b in (real, synthetic)]
        amplitudes = (sizes[0] - sizes[1]).square()
        # both terms together; by itself, that of the phases is lost in rounding as samples agree
        apart = (real[0] - synthetic[0]).square() + (real[1] - synthetic[1]).square()
        square = self.beta * apart + (self.alpha - self.beta) * amplitudes
        return SCALE * square.clamp_min(EPS).sqrt().mean(1)

    def _compare_exactly(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Distance ``(k,)`` of features, and a scalar that has the gradient of its sum."""
        with record_function("MMD"):
            mmd2, gradient = mmd2_and_grad(real, synthetic.detach(), EXACT_KERNEL, value=True)
        assert mmd2 is not None
        root = (self.alpha * mmd2).clamp_min(EPS).sqrt()
        # samples that agree: what is left of the MMD, and its gradient, is rounding
        slope = (SCALE * self.alpha / 2 / root).where(self.alpha * mmd2 > EPS, 0.0)
        return SCALE * root, (synthetic * gradient * slope[:, None, None]).sum()
