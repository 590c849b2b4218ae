"""The truth for tests of the kernels: MMD^2 by definition, in float64, one class at a time.

It shares nothing with the code under test but the fields of kernel functions: distances are sums
of squared differences, the bandwidth is a mean over stacked pairs, autograd differentiates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from m3d_fast.kernels import (
    Energy,
    Features,
    Gaussian,
    Kernel,
    Laplacian,
    Polynomial,
    Product,
    RationalQuadratic,
    Sum,
)

VALUE_TOLERANCE = 5e-6  # absolute, for k(0) = 5
GRADIENT_TOLERANCE = 2e-6  # of the norm of the gradient
ROW_TOLERANCE = 5e-6  # of the largest row


class Exact(NamedTuple):
    value: Tensor
    grad_x: Tensor
    grad_y: Tensor


def _pair_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None, :] - b[None, :, :]).square().sum(-1)


def _bandwidth(kernel: Gaussian, x: Tensor, y: Tensor, element: int) -> Tensor:
    if kernel.sigma is not None:
        given = 2 * torch.as_tensor(kernel.sigma, dtype=torch.float64) ** 2
    elif kernel.gamma is not None:
        given = 1 / torch.as_tensor(kernel.gamma, dtype=torch.float64)
    elif kernel.bandwidth == "mean":
        z = torch.cat([x, y]).detach()
        return _pair_distances(z, z).sum() / (len(z) ** 2 - len(z))
    else:
        given = torch.as_tensor(kernel.bandwidth, dtype=torch.float64)
    return given.reshape(-1)[element] if given.numel() > 1 else given


def _kernel_matrix(kernel: Kernel, a: Tensor, b: Tensor, bandwidth: Tensor | None) -> Tensor:
    if isinstance(kernel, Gaussian):
        squared = _pair_distances(a, b)
        return torch.stack([torch.exp(-squared / (bandwidth * s)) for s in kernel.scales]).sum(0)
    dot = (a[:, None, :] * b[None, :, :]).sum(-1)
    if isinstance(kernel, Polynomial):
        gamma = 1 / a.shape[-1] if kernel.gamma is None else kernel.gamma
        return (gamma * dot + kernel.coef0) ** kernel.degree
    return dot


def _mean_within(matrix: Tensor, estimator: str) -> Tensor:
    n = len(matrix)
    if estimator == "biased":
        return matrix.sum() / n**2
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def _mmd2_of_class(x: Tensor, y: Tensor, kernel: Kernel, estimator: str, element: int) -> Tensor:
    bandwidth = _bandwidth(kernel, x, y, element) if isinstance(kernel, Gaussian) else None
    within_x = _mean_within(_kernel_matrix(kernel, x, x, bandwidth), estimator)
    within_y = _mean_within(_kernel_matrix(kernel, y, y, bandwidth), estimator)
    return within_x + within_y - 2 * _kernel_matrix(kernel, x, y, bandwidth).mean()


def gram_by_definition(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """k(x_i, y_j) of (..., N, D) and (..., M, D), (..., N, M), float64 and differentiable."""
    x, y = x.double(), y.double()
    matrices = []
    for i, (a, b) in enumerate(zip(_elements(x), _elements(y), strict=True)):
        bandwidth = _bandwidth(kernel, a, b, i) if isinstance(kernel, Gaussian) else None
        matrices.append(_kernel_matrix(kernel, a, b, bandwidth))
    return torch.stack(matrices).reshape(*x.shape[:-1], y.shape[-2])


def by_definition(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    estimator: str = "biased",
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Exact:
    """MMD^2 of (..., N, D) and (..., M, D) and the gradient of each batch element's own value."""
    kernel = kernel or Gaussian()
    x = x.detach().cpu().double().requires_grad_()
    y = y.detach().cpu().double().requires_grad_()
    batch = x.shape[:-2]
    values = []
    for i, (a, b) in enumerate(zip(_elements(x), _elements(y), strict=True)):
        a = a if x_lengths is None else a[: int(x_lengths.flatten()[i])]
        b = b if y_lengths is None else b[: int(y_lengths.flatten()[i])]
        values.append(_mmd2_of_class(a, b, kernel, estimator, i))
    value = torch.stack(values)
    grad_x, grad_y = torch.autograd.grad(value.sum(), (x, y))
    return Exact(value.detach().reshape(batch), grad_x, grad_y)


def stacked_gram(z: Tensor, kernel: Kernel, rows: Tensor | None = None) -> Tensor:
    """k(z_i, z_j) of stacked samples (n, D), float64; ``rows`` count for the mean bandwidth."""
    z = z.double()
    if isinstance(kernel, Features):
        z = z if kernel.columns is None else z[:, slice(*kernel.columns)]
        z = z if kernel.bandwidth is None else z / kernel.bandwidth
        return stacked_gram(z, kernel.kernel, rows)
    if isinstance(kernel, Sum | Product):
        matrices = torch.stack([stacked_gram(z, part, rows) for part in kernel.kernels])
        return matrices.sum(0) if isinstance(kernel, Sum) else matrices.prod(0)
    squared = _pair_distances(z, z)
    # autograd's root of zero is not finite
    distance = torch.where(squared > 0, squared.clamp_min(1e-300).sqrt(), 0.0)
    if isinstance(kernel, Laplacian) and kernel.norm == "l1":
        return torch.exp((z[:, None] - z).abs().sum(-1) / -kernel.bandwidth)
    if isinstance(kernel, Laplacian):
        return torch.exp(-distance / kernel.bandwidth)
    if isinstance(kernel, Energy):
        return -(distance**kernel.exponent)
    if isinstance(kernel, RationalQuadratic):
        powers = [(1 + squared / (a * kernel.bandwidth)) ** -a for a in kernel.alphas]
        return torch.stack(powers).sum(0)
    if isinstance(kernel, Gaussian):
        counted = z if rows is None else z[rows]
        return _kernel_matrix(kernel, z, z, _bandwidth(kernel, counted[:1], counted[1:], 0))
    return _kernel_matrix(kernel, z, z, None)


def weighted_by_definition(
    x: Tensor, y: Tensor, kernel: Kernel, unbiased: bool, u: Tensor, v: Tensor
) -> Exact:
    """MMD^2 of (N, D) and (M, D) with weights (N,) and (M,), and its gradients, float64."""
    x, y = (side.detach().double().requires_grad_() for side in (x, y))
    u, v = u.double() / u.double().sum(), v.double() / v.double().sum()
    matrix = stacked_gram(torch.cat([x, y]), kernel, torch.cat([u, v]) > 0)
    n = len(x)

    def within(k: Tensor, w: Tensor) -> Tensor:
        pairs = torch.outer(w, w)
        if unbiased:
            pairs = pairs - pairs.diag().diag()
        return (k * pairs).sum() / pairs.sum()

    value = within(matrix[:n, :n], u) + within(matrix[n:, n:], v) - 2 * u @ matrix[:n, n:] @ v
    return Exact(value.detach(), *torch.autograd.grad(value, (x, y)))


def _elements(points: Tensor) -> Tensor:
    return points.reshape(-1, *points.shape[-2:])


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double().cpu() - exact).norm() / exact.norm()).item()


@dataclass
class Truth:
    """Compute exact results, and compare with them within the tolerances of float32."""

    exact: Callable[..., Exact] = by_definition
    relative_error: Callable[[Tensor, Tensor], float] = relative_error

    def assert_value(self, ours: Tensor, exact: Tensor, *, within: float = VALUE_TOLERANCE) -> None:
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=0, atol=within)

    @staticmethod
    def size_of(kernel: Kernel, value: Tensor) -> float:
        """Dot products are not bounded by k(0): their sums are of the size of |x|^2."""
        return 1.0 if isinstance(kernel, Gaussian) else max(1.0, value.abs().max().item())

    def assert_gradient(
        self, ours: Tensor, exact: Tensor, *, within: float = GRADIENT_TOLERANCE
    ) -> None:
        """Compare norms, and the largest rows, per batch element."""
        assert ours.shape == exact.shape
        for our_element, element in zip(_elements(ours), _elements(exact), strict=True):
            assert relative_error(our_element, element) <= within
            row_errors = (our_element.double().cpu() - element).norm(dim=-1)
            bound = within * ROW_TOLERANCE / GRADIENT_TOLERANCE
            assert row_errors.max() <= bound * element.norm(dim=-1).max()
