"""One test with many kernels, whose level does not suffer from trying them all."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import checks
from ..combinations import Kernel
from ..kernel_functions import Gaussian, Laplacian
from ..precision import full_float32
from ..reference import accumulator_dtype
from .pair_sums import sum_pairs
from .permutation import check_count, check_test, draw_members

Method = Literal["min_p", "fuse"]
SPREAD_ROWS = 500  # whose distances give the bandwidths


class AggregatedTest(NamedTuple):
    """Result of ``aggregated_test``."""

    statistic: Tensor  # (), larger where the samples differ more
    p_value: float
    null: Tensor  # (permutations,), the statistic of each random permutation
    kernel_p_values: Tensor  # (kernels,), of each kernel alone, not corrected for the others


def spread_kernels(
    x: Tensor, y: Tensor, count: int = 10, generator: torch.Generator | None = None
) -> list[Kernel]:
    """Gaussians and Laplacians over the range of the distances between rows.

    The bandwidths are a geometric row from half the 5 % quantile of the distances to twice their
    95 % quantile: the ends are those of MMD-FUSE (Biggs et al. 2023, arXiv 2306.08777), in whose
    authors' code they are evenly spaced, and Laplacians are ``norm="l1"``. The quantiles are those
    of up to 500 rows of the stacked sample, drawn without regard to which sample they are of.

    Args:
        x: ``(N, D)``.
        y: ``(M, D)``, same dtype and device.
        count: how many of each kind.
        generator: draws the rows, on the CPU; None means torch's default generator.
    """
    check_test(x, y, [])
    check_count("count", count)
    rows = torch.randperm(len(x) + len(y), generator=generator)[:SPREAD_ROWS]
    z = torch.cat([x.detach(), y.detach()])[rows.to(x.device)]
    z = z.to(accumulator_dtype(z.dtype))
    distances = torch.pdist(z)
    distances = distances[distances > 0]
    if not len(distances):
        raise ValueError("x, y: expected rows that differ, whose distances give the bandwidths")
    ends = torch.quantile(distances, distances.new_tensor([0.05, 0.95]))
    low, high = ends[0].item() / 2, ends[1].item() * 2
    steps = [i / max(1, count - 1) for i in range(count)]
    widths = [low * (high / low) ** step for step in steps]
    gaussians = [Gaussian(sigma=width, scales=(1.0,)) for width in widths]
    return [*gaussians, *map(Laplacian, widths)]


def aggregated_test(
    x: Tensor,
    y: Tensor,
    kernels: Sequence[Kernel] | None = None,
    *,
    method: Method = "fuse",
    permutations: int = 1000,
    generator: torch.Generator | None = None,
) -> AggregatedTest:
    """Test whether ``x`` and ``y`` come from one distribution, with many kernels at once.

    All kernels see the same permutations, and every permutation is treated as the samples are, so
    that the p-value is exact for any number of them. Distances are computed once for all kernels.

    Args:
        x: ``(N, D)``, any floating dtype, N at least 2.
        y: ``(M, D)``, same dtype and device.
        kernels: None means ``spread_kernels(x, y)``.
        method: "fuse" takes the soft maximum over kernels of the unbiased MMD^2 divided by the
            root of the kernel's mean square (MMD-FUSE, Biggs et al. 2023, arXiv 2306.08777, eq. 5),
            as sharp as in its authors' code: nearly the maximum. "min_p" takes the smallest of the
            kernels' own p-values (MMDAgg, Schrab et al. 2023, arXiv 2110.15073, with equal weights
            and one set of permutations for both its steps; Westfall and Young 1993).
        permutations: number of random permutations.
        generator: as in ``permutation_test``.

    Returns:
        ``(statistic, p_value, null, kernel_p_values)``.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """
    check_test(x, y, kernels or [])
    checks.check_choice("method", method, get_args(Method))
    check_count("permutations", permutations)
    for label, points in (("x", x), ("y", y)):
        checks.check_rows(label, points, "unbiased")
    if kernels is None:
        cpu = generator if generator is None or generator.device.type == "cpu" else None
        kernels = spread_kernels(x, y, generator=cpu)
    if not kernels:
        raise ValueError("kernels: expected at least one, got none")
    n, m = len(x), len(y)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), full_float32(x.device):
        members = draw_members(n, m, permutations, x.device, generator).to(x.device)
        sums = sum_pairs(members if n <= m else ~members, x, y, kernels, squares=method == "fuse")
        sizes = min(n, m), max(n, m)
        values = torch.stack([one.mmd2(*sizes, unbiased=True) for one in sums], 1)
        shares = _rank(values)
        if method == "fuse":
            squares = torch.stack([one.squares for one in sums]) / ((n + m) * (n + m - 1))
            # the code divides by the root of the sum of squares, and multiplies by this
            sharpness = (sizes[0] * (sizes[0] - 1)) ** 1.5 / math.sqrt((n + m) * (n + m - 1))
            statistics = _fuse(values / squares.sqrt(), sharpness)
        else:
            statistics = _combine_ranks(values, shares)
        larger = int((statistics >= statistics[0] - 1e-9 * statistics.abs().max()).sum())
    return AggregatedTest(
        statistics[0], larger / (1 + permutations), statistics[1:], shares[0].clone()
    )


def _rank(values: Tensor) -> Tensor:
    """The share of permutations with at least a value, for each kernel, (B, kernels)."""
    # one division of the rows may be drawn again, and be summed in another order
    slack = 1e-6 * values.abs().mean(0)
    ordered = values.T.sort().values.contiguous()
    below = torch.searchsorted(ordered, (values - slack).T.contiguous()).T
    return (len(values) - below).double() / len(values)


def _fuse(values: Tensor, sharpness: float) -> Tensor:
    """The soft maximum over kernels, (B,)."""
    return (torch.logsumexp(values * sharpness, 1) - math.log(values.shape[1])) / sharpness


def _combine_ranks(values: Tensor, shares: Tensor) -> Tensor:
    """1 minus the smallest share over kernels, (B,), where equal ones follow the values' scores."""
    deviations = values.std(0).clamp_min(torch.finfo(values.dtype).tiny)
    scores = ((values - values.mean(0)) / deviations).amax(1)
    return 1 - shares.amin(1) + torch.sigmoid(scores) / (2 * len(values))
