"""Distances of generated from real images in a feature space: CMMD and KID."""

from typing import NamedTuple

import torch
from torch import Tensor

from .combinations import Kernel
from .functional import mmd2
from .kernel_functions import Gaussian, Polynomial

SUBSETS_PER_CALL = 16  # of KID on a GPU: 256 MB of features at 1000 x 2048


class _FeatureMetric:
    """Keeps all features of ``update``, on their device."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard all features."""
        self._batches: dict[bool, list[Tensor]] = {True: [], False: []}

    def update(self, features: Tensor, real: bool) -> None:
        """Add features ``(n, D)`` of real or of generated images.

        Raises:
            TypeError: if they are not a floating-point tensor, or ``real`` is not a bool.
            ValueError: if they are not ``(n, D)``, with the D of earlier features.
        """
        if not isinstance(features, Tensor) or not features.is_floating_point():
            given = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"features: expected a floating-point tensor, got {given}")
        if not isinstance(real, bool):
            raise TypeError(f"real: expected a bool, got {real!r}")
        if features.ndim != 2 or features.shape[1] == 0:
            raise ValueError(f"features: expected (n, D), got {tuple(features.shape)}")
        for batch in self._batches[True][:1] + self._batches[False][:1]:
            if batch.shape[1] != features.shape[1]:
                raise ValueError(
                    f"features: expected D = {batch.shape[1]}, got {features.shape[1]}"
                )
        # the caller may reuse its buffer
        self._batches[real].append(features.detach().clone())

    def _join_features(self, real: bool, at_least: int) -> Tensor:
        batches = self._batches[real]
        count = sum(map(len, batches))
        if count < at_least:
            kind = "real" if real else "generated"
            raise ValueError(f"{kind} features: expected at least {at_least} rows, got {count}")
        self._batches[real] = [torch.cat(batches)] if len(batches) > 1 else batches
        return self._batches[real][0]


class CMMD(_FeatureMetric):
    """CLIP maximum mean discrepancy (Jayasumana et al. 2024, arXiv 2401.09603).

    The biased MMD^2 of one Gaussian with sigma 10, times 1000, as its authors publish it; the
    features are CLIP embeddings of unit length, 30,000 per sample in the paper. A matrix of all
    pairs is never formed.
    """

    kernel: Kernel = Gaussian(sigma=10.0, scales=(1.0,))

    def compute(self) -> Tensor:
        """Compute the distance between all real and all generated features, ().

        Raises:
            ValueError: if there are no real or no generated features.
        """
        real, generated = self._join_features(True, 1), self._join_features(False, 1)
        with torch.no_grad():
            return 1000 * mmd2(real, generated, self.kernel)


class KIDResult(NamedTuple):
    """Mean and population standard deviation over the subsets."""

    mean: Tensor
    std: Tensor


class KID(_FeatureMetric):
    """Kernel Inception distance (Binkowski et al. 2018, arXiv 1801.01401).

    The unbiased MMD^2 of a cubic polynomial kernel between random subsets of Inception features,
    drawn without replacement; mean and standard deviation over the subsets.

    Args:
        subsets: their number.
        subset_size: rows in each, of the real and of the generated features.
        kernel: ``Polynomial()`` is ``(a.b / D + 1)^3``.
        generator: draws the subsets, on the CPU; None means torch's default generator.
    """

    def __init__(
        self,
        subsets: int = 100,
        subset_size: int = 1000,
        kernel: Polynomial | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for label, given, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2)):
            if isinstance(given, bool) or not isinstance(given, int):
                raise TypeError(f"{label}: expected an int, got {given!r}")
            if given < least:
                raise ValueError(f"{label}: expected at least {least}, got {given}")
        self.subsets, self.subset_size = subsets, subset_size
        self.kernel = Polynomial() if kernel is None else kernel
        self.generator = generator

    def compute(self) -> KIDResult:
        """Compute mean and standard deviation over the subsets, each ().

        Raises:
            ValueError: if there are fewer real or generated features than ``subset_size``.
        """
        real = self._join_features(True, self.subset_size)
        generated = self._join_features(False, self.subset_size)
        at_once = SUBSETS_PER_CALL if real.is_cuda else 1
        values = [
            self._score_subsets(real, generated, min(at_once, self.subsets - start))
            for start in range(0, self.subsets, at_once)
        ]
        scores = torch.cat(values)
        return KIDResult(scores.mean(), scores.std(unbiased=False))

    def _score_subsets(self, real: Tensor, generated: Tensor, count: int) -> Tensor:
        x, y = self._draw_subsets(real, count), self._draw_subsets(generated, count)
        with torch.no_grad():
            return mmd2(x, y, self.kernel, estimator="unbiased")

    def _draw_subsets(self, features: Tensor, count: int) -> Tensor:
        rows = [
            torch.randperm(len(features), generator=self.generator)[: self.subset_size]
            for _ in range(count)
        ]
        # twice as fast as features[rows] on a CPU
        drawn = features.index_select(0, torch.cat(rows).to(features.device))
        return drawn.view(count, self.subset_size, -1)
