"""Kernel losses called as those of GeomLoss."""

from typing import Literal

import torch
from torch import Tensor, nn

from ..kernels import Energy, Gaussian, Kernel, Laplacian, mmd2

Loss = Literal["gaussian", "laplacian", "energy"]
MASS_TOLERANCE = 1e-4  # relative, between the two sums of weights


class SamplesLoss(nn.Module):
    """``geomloss.SamplesLoss`` for its kernel losses: half of MMD^2 between weighted samples.

    ``exp(-|x - y|^2 / (2 blur^2))``, ``exp(-|x - y| / blur)`` or ``-|x - y|`` (Feydy et al. 2019,
    arXiv 1810.08278). Unlike there, memory does not grow with the pairs, no gradient flows to the
    weights, and both samples have the same total weight.

    Args:
        loss: "gaussian", "laplacian" or "energy".
        blur: the scale of the first two kernels, positive, in the units of the points.

    Raises:
        ValueError: for another loss ("sinkhorn" and "hausdorff" are not losses by a kernel), or a
            blur that is not positive.
    """

    def __init__(self, loss: Loss = "gaussian", blur: float = 0.05) -> None:
        super().__init__()
        if loss not in ("gaussian", "laplacian", "energy"):
            raise ValueError(f"loss: expected 'gaussian', 'laplacian' or 'energy', got {loss!r}")
        if not blur > 0:
            raise ValueError(f"blur: expected a positive number, got {blur!r}")
        self.loss, self.blur = loss, blur
        self.kernel: Kernel
        if loss == "gaussian":
            self.kernel = Gaussian(sigma=blur, scales=(1.0,))
        else:
            self.kernel = Laplacian(blur) if loss == "laplacian" else Energy()

    def forward(self, *arguments: Tensor) -> Tensor:
        """The loss: ``(x, y)``, or ``(x weights, x, y weights, y)``.

        Args:
            arguments: points (N, D) and (M, D), or batches (B, N, D) and (B, M, D); weights (N,)
                and (M,), or (B, N) and (B, M), not negative, of equal sums.

        Returns:
            (), or (B,) for batches.

        Raises:
            TypeError, ValueError: for other arguments, with what was expected and given.
        """
        if len(arguments) == 2:
            return 0.5 * mmd2(*arguments, self.kernel)
        if len(arguments) != 4:
            raise TypeError(
                "expected (x, y) or (x weights, x, y weights, y), points (N, D) or (B, N, D),"
                f" got {len(arguments)} arguments"
            )
        a, x, b, y = arguments
        value = mmd2(x, y, self.kernel, x_weights=a, y_weights=b)
        masses = a.sum(-1), b.sum(-1)
        if a.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_masses(*masses)
        return 0.5 * masses[0] * masses[1] * value

    def extra_repr(self) -> str:
        """Return the settings that ``print(module)`` shows."""
        return f"loss={self.loss!r}, blur={self.blur}"


def _check_masses(a: Tensor, b: Tensor) -> None:
    if not torch.allclose(a, b, rtol=MASS_TOLERANCE, atol=0):
        raise ValueError(f"weights: expected equal sums, got {a.tolist()} and {b.tolist()}")
