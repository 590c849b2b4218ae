"""The kernel functions, and how each is encoded for the op."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Norm = Literal["l1", "l2"]


class Encoded(NamedTuple):
    """A kernel function for the op: a name, plain numbers and at most one tensor."""

    name: str
    parameters: list[float]
    bandwidth: Tensor | None


def _check_positive(name: str, given: object) -> None:
    if isinstance(given, Tensor):
        _check_bandwidth_tensor(name, given)
    # torch 2.5 cannot compile int | float
    elif isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name}: expected a float or a tensor, got {given!r}")
    elif not 0 < given < math.inf:
        raise ValueError(f"{name}: expected a positive finite number, got {given}")


def _check_float(name: str, given: object) -> None:
    if isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a float, got a tensor")
    _check_positive(name, given)


def _check_bandwidth_tensor(name: str, given: Tensor) -> None:
    if not given.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {given.dtype}")
    if given.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor without requires_grad, got one with it;"
            " no gradient flows to the bandwidth, so pass it detached"
        )


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Mixture of Gaussians: the sum of ``exp(-|a - b|^2 / (bandwidth * s))`` over s in scales.

    The default is the kernel of M3D (arXiv 2312.15927, eq. 9 and its code).

    Args:
        bandwidth: in units of squared distance, ``2 sigma^2 = 1 / gamma``. A float, a tensor (a
            scalar, or one number per batch element, on the samples' device), or ``"mean"``: the
            mean squared distance over all pairs of distinct rows of the stacked ``[x; y]``, per
            batch element. No gradient flows through it.
        sigma: standard deviation, instead of ``bandwidth``; float or tensor.
        gamma: inverse bandwidth, instead of ``bandwidth``; float or tensor.
        scales: multiples of the bandwidth that are summed.

    Raises:
        TypeError: if more than one of ``bandwidth``, ``sigma``, ``gamma`` is given, or one is not
            a number.
        ValueError: if one is not positive and finite or is a tensor that requires a gradient, or
            ``scales`` is empty. The values of a tensor are checked when it is used, on the CPU
            only: on a GPU they are not read, which would stall it, and an invalid one gives NaN.
    """

    bandwidth: float | Tensor | str = "mean"
    sigma: float | Tensor | None = None
    gamma: float | Tensor | None = None
    scales: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        given = [name for name in ("sigma", "gamma") if getattr(self, name) is not None]
        if not isinstance(self.bandwidth, str):
            given.insert(0, "bandwidth")
        elif self.bandwidth != "mean":
            raise ValueError(f"bandwidth: expected 'mean' or a number, got {self.bandwidth!r}")
        if len(given) > 1:
            raise TypeError(f"expected one of bandwidth, sigma, gamma, got {' and '.join(given)}")
        for name in given:
            _check_positive(name, getattr(self, name))
        scales = tuple(self.scales)
        if not scales:
            raise ValueError("scales: expected at least one number, got none")
        for scale in scales:
            if isinstance(scale, Tensor):
                raise TypeError("scales: expected floats, got a tensor")
            _check_positive("scales", scale)
        object.__setattr__(self, "scales", scales)

    def resolve_bandwidth(self) -> float | Tensor | None:
        """Return the bandwidth in units of squared distance, or None for the mean rule."""
        if self.sigma is not None:
            # keep the sign, so that a negative value in a tensor is refused when it is used
            sigma = self.sigma
            return 2 * sigma * (sigma.abs() if isinstance(sigma, Tensor) else sigma)
        if self.gamma is not None:
            return 1 / self.gamma
        return None if isinstance(self.bandwidth, str) else self.bandwidth

    def encode(self, dimensions: int) -> Encoded:
        """Encode for the op; a float bandwidth is multiplied into the scales."""
        bandwidth = self.resolve_bandwidth()
        scales = list(self.scales)
        if bandwidth is None:
            return Encoded("gaussian_mean", scales, None)
        if isinstance(bandwidth, Tensor):
            return Encoded("gaussian", scales, bandwidth)
        return Encoded("gaussian", [bandwidth * scale for scale in scales], None)


@dataclass(frozen=True)
class Polynomial:
    """``k(a, b) = (gamma a.b + coef0)^degree``; the defaults are those of KID (arXiv 1801.01401).

    Args:
        degree: a positive integer.
        gamma: positive; None means ``1 / D``.
        coef0: not negative.

    Raises:
        TypeError, ValueError: if an argument is invalid.
    """

    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int):
            raise TypeError(f"degree: expected an int, got {self.degree!r}")
        if self.degree < 1:
            raise ValueError(f"degree: expected at least 1, got {self.degree}")
        if isinstance(self.gamma, Tensor) or isinstance(self.coef0, Tensor):
            raise TypeError("gamma, coef0: expected floats, got a tensor")
        if self.gamma is not None:
            _check_positive("gamma", self.gamma)
        if self.coef0 != 0:
            _check_positive("coef0", self.coef0)

    def encode(self, dimensions: int) -> Encoded:
        """Encode for the op, with gamma resolved."""
        gamma = 1 / dimensions if self.gamma is None else self.gamma
        return Encoded("polynomial", [float(self.degree), gamma, float(self.coef0)], None)


@dataclass(frozen=True)
class Linear:
    """``k(a, b) = a.b``: MMD^2 is then the squared distance of the two means."""

    def encode(self, dimensions: int) -> Encoded:
        """Encode for the op."""
        return Encoded("linear", [], None)


@dataclass(frozen=True)
class Laplacian:
    """``k(a, b) = exp(-|a - b| / bandwidth)``, with the Euclidean distance or the city block's.

    Where ``a = b``, or for "l1" where they agree in a feature, it has no gradient (in that
    feature); zero is used there, the middle of its directions.

    Args:
        bandwidth: positive, in units of distance.
        norm: of the distance: "l2", or "l1" for the sum of absolute differences, as in
            scikit-learn's ``laplacian_kernel`` (whose gamma is ``1 / bandwidth``), MMDAgg and
            MMD-FUSE.

    Raises:
        TypeError, ValueError: if an argument is invalid.
    """

    bandwidth: float = 1.0
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        _check_float("bandwidth", self.bandwidth)
        if self.norm not in ("l1", "l2"):
            raise ValueError(f"norm: expected 'l1' or 'l2', got {self.norm!r}")

    def encode(self, dimensions: int) -> Encoded:
        """Encode for the op."""
        name = "laplacian" if self.norm == "l2" else "laplacian_l1"
        return Encoded(name, [float(self.bandwidth)], None)


@dataclass(frozen=True, kw_only=True)
class RationalQuadratic:
    """The sum of ``(1 + |a - b|^2 / (alpha * bandwidth))^-alpha`` over alpha in alphas.

    Each tends to ``exp(-|a - b|^2 / bandwidth)`` for a large alpha (Rasmussen and Williams 2006,
    eq. 4.19). The defaults are the mixture of MMD-GAN (Binkowski et al. 2018, arXiv 1801.01401).

    Args:
        bandwidth: positive, in units of squared distance.
        alphas: positive; a small one gives a heavy tail.

    Raises:
        TypeError, ValueError: if an argument is invalid.
    """

    bandwidth: float = 2.0
    alphas: Sequence[float] = (0.2, 0.5, 1.0, 2.0, 5.0)

    def __post_init__(self) -> None:
        _check_float("bandwidth", self.bandwidth)
        alphas = tuple(self.alphas)
        if not alphas:
            raise ValueError("alphas: expected at least one number, got none")
        for alpha in alphas:
            _check_float("alphas", alpha)
        object.__setattr__(self, "alphas", alphas)

    def encode(self, dimensions: int) -> Encoded:
        """Encode for the op."""
        return Encoded(
            "rational_quadratic", [float(self.bandwidth), *map(float, self.alphas)], None
        )


@dataclass(frozen=True)
class Energy:
    """``k(a, b) = -|a - b|^exponent``: MMD^2 is then the energy distance.

    ``2 E|x - y| - E|x - x'| - E|y - y'|`` for exponent 1 (Szekely and Rizzo 2013; Sejdinovic et al.
    2013 for the kernel). Where ``a = b`` its gradient is taken as zero.

    Args:
        exponent: at least 1 and below 2.

    Raises:
        TypeError, ValueError: if it is invalid.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        _check_float("exponent", self.exponent)
        if not 1 <= self.exponent < 2:
            raise ValueError(
                f"exponent: expected at least 1 (below, the gradient has no bound near coincident"
                f" points) and less than 2, got {self.exponent}"
            )

    def encode(self, dimensions: int) -> Encoded:
        """Encode for the op."""
        return Encoded("energy", [float(self.exponent)], None)


M3D_KERNEL = Gaussian()
