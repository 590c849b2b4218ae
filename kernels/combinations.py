"""Kernel functions made of others: sums, products, and kernels of some of the features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .kernel_functions import (
    Energy,
    Gaussian,
    Laplacian,
    Linear,
    Polynomial,
    RationalQuadratic,
)
from .reference import accumulator_dtype

OWN_PATH = (Gaussian, Polynomial, Linear)  # the op of ops.py; the others are those of general/
SINGLE = (*OWN_PATH, Laplacian, RationalQuadratic, Energy)


@dataclass(frozen=True, init=False)
class _Combination:
    """Several kernels in one."""

    kernels: tuple["Kernel", ...]

    def __init__(self, *kernels: "Kernel") -> None:
        if not kernels:
            raise ValueError("kernels: expected at least one, got none")
        for kernel in kernels:
            check_kernel(kernel)
        object.__setattr__(self, "kernels", kernels)


class Sum(_Combination):
    """``k(a, b)`` is the sum of the kernels given: ``Sum(Gaussian(), Energy())``.

    Raises:
        TypeError, ValueError: if there is none, or one is not a kernel.
    """


class Product(_Combination):
    """``k(a, b)`` is the product of the kernels given.

    Raises:
        TypeError, ValueError: if there is none, or one is not a kernel.
    """


@dataclass(frozen=True)
class Features:
    """A kernel of some of the features, each divided by a bandwidth of its own.

    Args:
        kernel: the kernel of what is selected.
        columns: the features ``[start, stop)``; None means all.
        bandwidth: a scalar or one positive number per selected feature, in the units of the
            features, on the device of the samples; None divides by nothing. It may require a
            gradient, which ``mmd2`` then gives.

    Raises:
        TypeError, ValueError: if an argument is invalid.
    """

    kernel: "Kernel"
    columns: tuple[int, int] | None = None
    bandwidth: Tensor | None = None

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        columns, bandwidth = self.columns, self.bandwidth
        if columns is not None and not 0 <= columns[0] < columns[1]:
            raise ValueError(f"columns: expected 0 <= start < stop, got {columns}")
        if bandwidth is None:
            return
        if not isinstance(bandwidth, Tensor) or not bandwidth.is_floating_point():
            given = bandwidth.dtype if isinstance(bandwidth, Tensor) else bandwidth
            raise TypeError(f"bandwidth: expected a floating-point tensor, got {given!r}")
        if bandwidth.ndim > 1:
            shape = tuple(bandwidth.shape)
            raise ValueError(f"bandwidth: expected shape () or (features,), got {shape}")

    def select(self, points: Tensor) -> Tensor:
        """Return the selected features, divided, of ``(..., n, D)`` points.

        Raises:
            ValueError: if the samples have other features or are on another device.
        """
        if self.columns is not None:
            start, stop = self.columns
            if stop > points.shape[-1]:
                raise ValueError(
                    f"columns: expected at most the {points.shape[-1]} features of the samples,"
                    f" got {start} to {stop}"
                )
            points = points[..., start:stop]
        bandwidth = self.bandwidth
        if bandwidth is None:
            return points
        if bandwidth.ndim == 1 and len(bandwidth) != points.shape[-1]:
            raise ValueError(
                f"bandwidth: expected one number per feature, ({points.shape[-1]},),"
                f" got {tuple(bandwidth.shape)}"
            )
        if bandwidth.device != points.device:
            raise ValueError(f"bandwidth: expected device {points.device}, got {bandwidth.device}")
        if bandwidth.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_positive_values(bandwidth)
        dtype = accumulator_dtype(points.dtype)
        return points.to(dtype) / bandwidth.to(dtype)


def _check_positive_values(bandwidth: Tensor) -> None:
    given = bandwidth.detach()
    if not ((given > 0) & given.isfinite()).all():
        raise ValueError(f"bandwidth: expected positive finite numbers, got {given.tolist()}")


Kernel = (
    Gaussian
    | Polynomial
    | Linear
    | Laplacian
    | RationalQuadratic
    | Energy
    | Sum
    | Product
    | Features
)


def check_kernel(kernel: Kernel) -> None:
    """Refuse anything but an instance of a kernel function, such as its class."""
    if not isinstance(kernel, (*SINGLE, Sum, Product, Features)):
        raise TypeError(
            "kernel: expected Gaussian, Polynomial, Linear, Laplacian, RationalQuadratic, Energy,"
            f" Sum, Product or Features, got {kernel!r}"
        )
