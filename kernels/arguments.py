"""The arguments of the op, in its order."""

from typing import NamedTuple

from torch import Tensor


class OpArguments(NamedTuple):
    """What ``torch.ops.m3d_fast.mmd2`` takes; ``ops.mmd2(*arguments)`` calls it.

    Attributes:
        x: ``(..., N, D)``.
        y: ``(..., M, D)``.
        bandwidth: one number, or one per batch element; None for the mean rule, or where
            ``parameters`` hold it.
        x_lengths: rows of ``x`` that count, integer ``(...)``; None for all.
        y_lengths: the same for ``y``.
        kernel: "gaussian_mean", "gaussian", "polynomial" or "linear".
        parameters: scales; degree, gamma, coef0; nothing.
        unbiased: whether the estimator is the U-statistic.
        precision: "highest", "high", "medium", or None for torch's own setting.
        value: whether the value is wanted.
        grad_x: whether the gradient in ``x`` is wanted.
        grad_y: whether the gradient in ``y`` is wanted.
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
