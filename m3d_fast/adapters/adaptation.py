"""MMD between domains, called as the layer of pytorch-adapt."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..kernels import Gaussian, Kernel, gram, joint_mmd2, mmd2

Kind = Literal["linear", "quadratic"]


class MMDAdaptationLoss(nn.Module):
    """``pytorch_adapt.layers.MMDLoss``: the loss of DAN, or of JAN for lists of layers.

    The kernel is the mean over s in ``kernel_scales`` of ``exp(-s |a - b|^2 / bandwidth)``; JAN
    multiplies those of the layers (arXiv 1502.02791 and 1605.06636).

    Args:
        kernel_scales: a number, or a tensor of several.
        mmd_type: "quadratic" is the unbiased estimate over all pairs, "linear" that over pairs of
            neighbouring rows.
        bandwidth: in units of squared distance; None means the median squared distance of all
            pairs of rows of ``x``, those of a row with itself included, for each layer.

    Raises:
        ValueError: for another ``mmd_type``, or numbers that are not positive.
    """

    def __init__(
        self,
        kernel_scales: float | Tensor = 1.0,
        mmd_type: Kind = "linear",
        bandwidth: float | None = None,
    ) -> None:
        super().__init__()
        if mmd_type not in ("linear", "quadratic"):
            raise ValueError(f"mmd_type: expected 'linear' or 'quadratic', got {mmd_type!r}")
        scales = torch.as_tensor(kernel_scales, dtype=torch.float64).flatten().tolist()
        if not scales or not all(scale > 0 for scale in scales):
            raise ValueError(f"kernel_scales: expected positive numbers, got {kernel_scales}")
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"bandwidth: expected a positive number, got {bandwidth}")
        self.scales, self.mmd_type, self.bandwidth = scales, mmd_type, bandwidth

    def forward(self, x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> Tensor:
        """The loss between ``x`` (N, D) and ``y`` (M, D), or between two lists of layers.

        Raises:
            TypeError, ValueError: for other shapes; "linear" needs as many rows in each, at least
                two.
        """
        xs, ys = ([one] if isinstance(one, Tensor) else list(one) for one in (x, y))
        if len(xs) != len(ys):
            raise ValueError(f"x, y: expected as many layers in each, got {len(xs)} and {len(ys)}")
        shares = 1 / len(self.scales) ** len(xs)
        parts = [self._choose_kernel(layer) for layer in xs]
        if self.mmd_type == "linear":
            return shares * _linear(xs, ys, parts)
        if len(xs) == 1:
            return shares * mmd2(xs[0], ys[0], parts[0], estimator="unbiased")
        return shares * joint_mmd2(xs, ys, parts, estimator="unbiased")

    def _choose_kernel(self, x: Tensor) -> Kernel:
        bandwidth: float | Tensor
        if self.bandwidth is None:
            points = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
            bandwidth = torch.cdist(points, points).square().median()
        else:
            bandwidth = self.bandwidth
        return Gaussian(bandwidth=bandwidth, scales=[1 / scale for scale in self.scales])

    def extra_repr(self) -> str:
        """Return the settings that ``print(module)`` shows."""
        return f"kernel_scales={self.scales}, mmd_type={self.mmd_type!r}"


def _linear(xs: list[Tensor], ys: list[Tensor], parts: list[Kernel]) -> Tensor:
    """Gretton et al. 2012, section 6: the mean of h over pairs of neighbouring rows."""
    terms: Tensor | float = 1.0
    for x, y, kernel in zip(xs, ys, parts, strict=True):
        if x.shape != y.shape or x.ndim != 2 or len(x) < 2:
            raise ValueError(
                "x, y: expected (N, D) of one shape and at least 2 rows for the linear estimate,"
                f" got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        rows = len(x) // 2 * 2
        (x1, x2), (y1, y2) = ((side[0:rows:2, None], side[1:rows:2, None]) for side in (x, y))
        pairs = ((x1, x2), (y1, y2), (x1, y2), (x2, y1))
        terms = terms * torch.stack([gram(a, b, kernel)[:, 0, 0] for a, b in pairs])
    assert isinstance(terms, Tensor)
    return (terms[0] + terms[1] - terms[2] - terms[3]).mean()
