"""KID and CMMD as metrics of torchmetrics, on features that the caller computes."""

from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels import Polynomial

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this adapter needs torchmetrics ({error}): pip install torchmetrics; without it,"
        " m3d_fast.kernels.KID and CMMD do the same in one process",
        name=error.name,
    ) from None


class _FeatureDistance(Metric):
    """Keeps the features of both kinds, on each rank; they are gathered when it computes."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, reset_real_features: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(reset_real_features, bool):
            raise ValueError(f"reset_real_features: expected a bool, got {reset_real_features!r}")
        self.reset_real_features = reset_real_features
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features ``(n, D)`` of real or of generated images.

        Raises:
            ValueError: for anything else, such as images.
        """
        if not isinstance(features, Tensor) or not features.is_floating_point():
            given = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"features: expected a floating-point tensor, got {given}")
        if features.ndim != 2:
            raise ValueError(
                f"features: expected (n, D), the output of a network for n images,"
                f" got {tuple(features.shape)}"
            )
        if features.device != self.device:
            raise ValueError(f"features: expected device {self.device}, got {features.device}")
        earlier = (self.real_features or self.fake_features)[:1]
        if earlier and earlier[0].shape[1] != features.shape[1]:
            raise ValueError(
                f"features: expected D = {earlier[0].shape[1]}, got {features.shape[1]}"
            )
        (self.real_features if real else self.fake_features).append(features.detach())

    def reset(self) -> None:
        """Discard all features; those of real images only if ``reset_real_features``."""
        # torchmetrics empties the list itself
        kept = None if self.reset_real_features else list(self.real_features)
        super().reset()
        if kept is not None:
            self.real_features = kept

    def _fill(self, metric: kernels.KID | kernels.CMMD) -> None:
        for features, real in ((self.real_features, True), (self.fake_features, False)):
            if len(features):
                metric.update(dim_zero_cat(features), real=real)


class KernelInceptionDistance(_FeatureDistance):
    """``torchmetrics.image.KernelInceptionDistance`` of given features.

    Takes the same subsets for the same state of torch's default generator.

    Args:
        subsets: number of random subsets.
        subset_size: rows in each.
        degree: of the polynomial kernel.
        gamma: of the polynomial kernel; None means 1 / D.
        coef: of the polynomial kernel.
        reset_real_features: whether ``reset`` discards the features of real images too.
        kwargs: those of ``torchmetrics.Metric``.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """

    def __init__(
        self,
        subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(reset_real_features, **kwargs)
        self.subsets, self.subset_size = subsets, subset_size
        self.kernel = Polynomial(degree, gamma=gamma, coef0=coef)
        kernels.KID(subsets, subset_size)  # checks its arguments

    def compute(self) -> tuple[Tensor, Tensor]:
        """Compute mean and standard deviation over the subsets, each ().

        Raises:
            ValueError: if there are fewer features than ``subset_size``.
        """
        metric = kernels.KID(self.subsets, self.subset_size, self.kernel)
        self._fill(metric)
        mean, std = metric.compute()
        return mean, std


class CLIPMaximumMeanDiscrepancy(_FeatureDistance):
    """CMMD (arXiv 2401.09603) of given CLIP embeddings, as a metric of torchmetrics.

    Args:
        reset_real_features: whether ``reset`` discards the features of real images too.
        kwargs: those of ``torchmetrics.Metric``.
    """

    def compute(self) -> Tensor:
        """Compute the distance between all real and all generated features, ().

        Raises:
            ValueError: if there are no real or no generated features.
        """
        metric = kernels.CMMD()
        self._fill(metric)
        with torch.no_grad():
            return metric.compute()
