"""Detection of drift by MMD, called as alibi-detect's ``MMDDrift``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import Gaussian, Kernel
from ..kernels.precision import full_float32
from ..kernels.two_sample.pair_sums import sum_pairs
from ..kernels.two_sample.permutation import check_count, check_test, draw_members

MEDIAN_ROWS = 1000  # whose distances give the bandwidth


class MMDDrift:
    """Tells whether new rows come from the distribution of reference rows.

    The unbiased MMD^2 and its permutation test, as ``alibi_detect.cd.MMDDrift`` with its torch
    backend, with a result of the same form. Two things differ: the p-value counts the given order
    too, ``(1 + larger) / (1 + n_permutations)``, so that it is exact and never zero; and the
    matrix of all pairs is never in memory.

    Args:
        x_ref: reference rows, ``(N, D)``, N at least 2.
        p_val: significance level, between 0 and 1.
        kernel: None means one Gaussian by ``sigma``.
        sigma: its standard deviation; None means the root of half the median squared distance of
            up to 1,000 of the stacked rows, at each prediction.
        n_permutations: number of random permutations.
        preprocess_fn: applied to the reference once and to every batch, to give ``(n, D)``.
        generator: draws permutations, on the CPU; None means torch's default generator.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """

    def __init__(
        self,
        x_ref: Tensor,
        p_val: float = 0.05,
        *,
        kernel: Kernel | None = None,
        sigma: float | None = None,
        n_permutations: int = 100,
        preprocess_fn: Callable[[Any], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 < p_val < 1:
            raise ValueError(f"p_val: expected a number between 0 and 1, got {p_val}")
        if kernel is not None and sigma is not None:
            raise TypeError("expected one of kernel and sigma, got both")
        check_count("n_permutations", n_permutations)
        self.x_ref = x_ref if preprocess_fn is None else preprocess_fn(x_ref)
        _check_rows("x_ref", self.x_ref)
        self.p_val, self.n_permutations = p_val, n_permutations
        self.preprocess_fn, self.generator = preprocess_fn, generator
        self.kernel = Gaussian(sigma=sigma, scales=(1.0,)) if sigma is not None else kernel

    def score(self, x: Any) -> tuple[float, float, float]:
        """Compute the p-value, the distance, and the distance from which on there is drift.

        Args:
            x: rows ``(M, D)``, M at least 2, or what ``preprocess_fn`` takes.

        Raises:
            TypeError, ValueError: for invalid arguments, with what was expected and given.
        """
        x = x if self.preprocess_fn is None else self.preprocess_fn(x)
        _check_rows("x", x)
        check_test(self.x_ref, x, [])
        n, m = len(self.x_ref), len(x)
        kernel = self._choose_kernel(x) if self.kernel is None else self.kernel
        with torch.no_grad(), full_float32(x.device):
            members = draw_members(n, m, self.n_permutations, x.device, self.generator)
            members = members.to(x.device)
            (sums,) = sum_pairs(members if n <= m else ~members, self.x_ref, x, [kernel])
            values = sums.mmd2(min(n, m), max(n, m), unbiased=True)
        statistic, null = values[0], values[1:]
        slack = 1e-6 * (statistic.abs() + null.abs().mean())
        p_value = (1 + int((null >= statistic - slack).sum())) / (1 + self.n_permutations)
        threshold = null.sort(descending=True).values[int(self.p_val * self.n_permutations)]
        return p_value, statistic.item(), threshold.item()

    def predict(
        self, x: Any, return_p_val: bool = True, return_distance: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Tell whether ``x`` has drifted.

        Args:
            x: as in ``score``.
            return_p_val: whether to return ``p_val`` and ``threshold``.
            return_distance: whether to return ``distance`` and ``distance_threshold``.

        Returns:
            ``{"data": {"is_drift": 0 or 1, ...}, "meta": {...}}``.

        Raises:
            TypeError, ValueError: for invalid arguments, with what was expected and given.
        """
        p_value, distance, distance_threshold = self.score(x)
        data: dict[str, Any] = {"is_drift": int(p_value < self.p_val)}
        if return_p_val:
            data |= {"p_val": p_value, "threshold": self.p_val}
        if return_distance:
            data |= {"distance": distance, "distance_threshold": distance_threshold}
        return {"data": data, "meta": {"name": "MMDDrift", "backend": "m3d_fast", "online": False}}

    def _choose_kernel(self, x: Tensor) -> Kernel:
        rows = torch.randperm(len(self.x_ref) + len(x), generator=self.generator)[:MEDIAN_ROWS]
        distances = torch.pdist(torch.cat([self.x_ref, x])[rows.to(x.device)].float())
        median = distances[distances > 0].median().item() if (distances > 0).any() else 1.0
        return Gaussian(sigma=median / 2**0.5, scales=(1.0,))


def _check_rows(label: str, points: Any) -> None:
    if not isinstance(points, Tensor) or not points.is_floating_point():
        given = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise TypeError(f"{label}: expected a floating-point tensor, got {given}")
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(
            f"{label}: expected at least 2 rows of features, (n, D), got {tuple(points.shape)};"
            " a preprocess_fn turns other data into features"
        )
