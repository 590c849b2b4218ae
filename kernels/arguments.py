"""The arguments of the op, in the order of its schema."""

from typing import NamedTuple

from torch import Tensor


class OpArguments(NamedTuple):
    """Arguments of ``torch.ops.m3d_fast.mmd2``; ``ops.mmd2(*arguments)`` calls it.

    Attributes:
        x: ``(..., N, D)``.
        y: ``(..., M, D)``.
        bandwidth: one number, or one per batch element; None for the mean rule, or if
            ``parameters`` contain it.
        x_lengths: number of rows of ``x`` that count, integer ``(...)``; None for all.
        y_lengths: the same for ``y``.
        kernel: "gaussian_mean", "gaussian", "polynomial" or "linear".
        parameters: scales of a Gaussian; degree, gamma and coef0 of a polynomial; empty for linear.
        unbiased: whether to compute the unbiased estimator (U-statistic).
        precision: "highest", "high", "medium", or None for torch's setting.
        value: whether the value is requested.
        grad_x: whether the gradient in ``x`` is requested.
        grad_y: whether the gradient in ``y`` is requested.
    """

    x: Tensor
    y: Tensor
    bandwidth: Tensor | None
    x_lengths: Tensor | None
    y_lengths: Tensor | None
    kernel: str
    parameters: list[float]
    unbiased: bool
    precision: str | None
    value: bool = True
    grad_x: bool = False
    grad_y: bool = False
