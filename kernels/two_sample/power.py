"""The power of a test with a kernel, and the bandwidths that maximise it."""

import torch
from torch import Tensor

from ..combinations import Features, Kernel
from ..functional import gram
from ..kernel_functions import Gaussian
from ..reference import accumulator_dtype
from .permutation import check_count, check_test

REGULARISER = 1e-8  # added to the variance, as in the code of Liu et al. 2020
FACTORS = [2.0**power for power in range(-5, 3)]  # of the first bandwidth, from which to ascend
UNIT_GAUSSIAN = Gaussian(sigma=1.0, scales=(1.0,))


def power_criterion(x: Tensor, y: Tensor, kernel: Kernel = UNIT_GAUSSIAN) -> Tensor:
    """MMD^2 divided by its standard deviation where the samples differ, times the root of N.

    The larger it is the more powerful is a test with this kernel (Sutherland et al. 2017; Liu et
    al. 2020, arXiv 2002.09116, eq. 3 to 5). Differentiable by autograd in the samples and in a
    ``Features(kernel, bandwidth=...)`` that requires a gradient. Takes the memory of several
    matrices of (2 N)^2 numbers.

    Args:
        x: ``(N, D)``, any floating dtype, N at least 2.
        y: ``(N, D)``, as many rows as ``x``, same dtype and device.
        kernel: as in ``mmd2``; a "mean" bandwidth has no gradient.

    Returns:
        ``()``: ``MMD^2_u / sqrt(variance / N + 1e-8)``.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """
    check_test(x, y, [kernel])
    n = len(x)
    if n != len(y) or n < 2:
        raise ValueError(f"x, y: expected as many rows in each, at least 2, got {n} and {len(y)}")
    z = torch.cat([x, y])
    k = gram(z, z, kernel)
    # h(i, j) = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j)
    h = k[:n, :n] + k[n:, n:] - k[:n, n:] - k[n:, :n]
    value = (h.sum() - h.diagonal().sum()) / (n * (n - 1))
    means = h.mean(1)
    variance = 4 * (means.square().mean() - means.mean().square())
    return value / (variance.clamp_min(0) / n + REGULARISER).sqrt()


def optimise_bandwidth(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = UNIT_GAUSSIAN,
    *,
    per_feature: bool = False,
    steps: int = 100,
    learning_rate: float = 0.05,
) -> Features:
    """Choose a bandwidth by gradient ascent on ``power_criterion``.

    Use rows that the test itself does not see: a kernel that was chosen on the rows it is tested
    on finds differences that are not there.

    Args:
        x: ``(N, D)``, any floating dtype.
        y: ``(N, D)``, as many rows as ``x``, same dtype and device.
        kernel: of features that are divided by the bandwidth; ``exp(-|a - b|^2 / 2)`` by default.
        per_feature: whether to choose one bandwidth for each feature.
        steps: of Adam, on the logarithms of the bandwidths.
        learning_rate: of Adam.

    Returns:
        ``Features(kernel, bandwidth=...)``. The ascent starts from the best of eight multiples of
        the root of half the mean squared distance.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """
    check_test(x, y, [kernel])
    check_count("steps", steps)
    x, y = (side.detach().to(accumulator_dtype(side.dtype)) for side in (x, y))
    z = torch.cat([x, y])
    # half the mean squared distance of distinct rows is the sum of the features' variances
    start = z.var(0).sum().sqrt()
    if not start > 0:
        raise ValueError("x, y: expected rows that differ, to choose a bandwidth")
    # the criterion has several maxima: one for the shape of clusters, one for their places
    powers = [_compute_power(x, y, kernel, start * factor) for factor in FACTORS]
    start = start * FACTORS[powers.index(max(powers))]
    logarithm = start.log().expand(z.shape[-1] if per_feature else ()).clone().requires_grad_()
    optimiser = torch.optim.Adam([logarithm], lr=learning_rate)
    best, best_power = logarithm.detach().exp(), -torch.inf
    with torch.enable_grad():
        for _ in range(steps):
            power = power_criterion(x, y, Features(kernel, bandwidth=logarithm.exp()))
            if power.item() > best_power:
                best, best_power = logarithm.detach().exp(), power.item()
            optimiser.zero_grad()
            (-power).backward()
            optimiser.step()
    return Features(kernel, bandwidth=best)


def _compute_power(x: Tensor, y: Tensor, kernel: Kernel, bandwidth: Tensor) -> float:
    with torch.no_grad():
        return power_criterion(x, y, Features(kernel, bandwidth=bandwidth)).item()
