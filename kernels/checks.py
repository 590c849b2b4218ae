"""Checks of what a caller passes; errors name the argument, what was expected and given."""

from typing import Literal, get_args

import torch
from torch import Tensor

from .arguments import OpArguments
from .combinations import check_kernel as check_kernel

Estimator = Literal["biased", "unbiased"]
Precision = Literal["highest", "high", "medium"]
Reduction = Literal["mean", "sum", "none"]
WithRespectTo = Literal["x", "y", "both"]
# torch 2.5 cannot compile get_args
ESTIMATORS: tuple[str, ...] = get_args(Estimator)
PRECISIONS: tuple[str, ...] = get_args(Precision)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
SIDES: tuple[str, ...] = get_args(WithRespectTo)


def check_samples(x: Tensor, y: Tensor) -> None:
    """Refuse two tensors that are not samples of the same space."""
    for label, points in (("x", x), ("y", y)):
        if not isinstance(points, Tensor):
            raise TypeError(f"{label}: expected a tensor, got {type(points).__name__}")
        if not points.is_floating_point():
            raise TypeError(f"{label}: expected a floating dtype, got {points.dtype}")
        if points.ndim < 2 or 0 in points.shape[-2:]:
            raise ValueError(
                f"{label}: expected at least one row and one column, (..., rows, columns),"
                f" got {tuple(points.shape)}"
            )
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x, y: expected (..., N, D) and (..., M, D), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.device != y.device:
        raise ValueError(f"x, y: expected one device, got {x.device} and {y.device}")
    if x.dtype != y.dtype and not _may_mix(x, y):
        raise TypeError(f"x, y: expected one dtype, got {x.dtype} and {y.dtype}")


def _may_mix(x: Tensor, y: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, y.dtype)


def check_choice(label: str, given: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that ``choices`` does not contain."""
    if given not in choices:
        raise ValueError(f"{label}: expected one of {', '.join(map(repr, choices))}, got {given!r}")


def check_precision(precision: Precision | None) -> None:
    """Refuse an unknown precision; None means torch's setting."""
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)


def check_rows(label: str, points: Tensor, estimator: Estimator) -> None:
    """Refuse a single row where the unbiased estimator divides by rows - 1."""
    if estimator == "unbiased" and points.shape[-2] < 2:
        raise ValueError(f"{label}: the unbiased estimator needs at least 2 rows, got 1")


def check_lengths(label: str, lengths: Tensor | None, points: Tensor) -> None:
    """Refuse lengths that are not one integer per batch element."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{label}: expected an int32 or int64 tensor, got {given}")
    _check_batch(label, lengths, points)


def check_weights(label: str, weights: Tensor | None, points: Tensor, unbiased: bool) -> None:
    """Refuse weights that are not one number per row, or that no distribution has.

    Values are checked on the CPU only, where reading them does not stall.
    """
    if weights is None:
        return
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        given = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"{label}: expected a floating-point tensor, got {given}")
    if weights.shape != points.shape[:-1]:
        raise ValueError(
            f"{label}: expected one number per row, {tuple(points.shape[:-1])},"
            f" got {tuple(weights.shape)}"
        )
    if weights.device != points.device:
        raise ValueError(f"{label}: expected device {points.device}, got {weights.device}")
    if weights.requires_grad:
        raise ValueError(
            f"{label}: expected a tensor without requires_grad, got one with it;"
            " no gradient flows to the weights, so pass them detached"
        )
    if weights.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_weight_values(label, weights, unbiased)


def _check_weight_values(label: str, weights: Tensor, unbiased: bool) -> None:
    if torch._C._functorch.is_functorch_wrapped_tensor(weights) or not weights.numel():
        return
    if not weights.isfinite().all() or (weights < 0).any():
        wrong = weights[~(weights.isfinite() & (weights >= 0))][0].item()
        raise ValueError(f"{label}: expected finite numbers of at least 0, got {wrong}")
    positive = int((weights > 0).sum(-1).min())
    if positive == 0:
        raise ValueError(f"{label}: expected a positive number for at least one row, got zeros")
    if unbiased and positive < 2:
        raise ValueError(f"{label}: the unbiased estimator needs 2 rows of positive weight, got 1")


def check_bandwidth(bandwidth: Tensor | None, points: Tensor) -> None:
    """Refuse a bandwidth tensor that is neither a scalar nor one number per batch element."""
    if bandwidth is not None:
        _check_batch("bandwidth", bandwidth, points, or_scalar=True)


def _check_batch(label: str, given: Tensor, points: Tensor, *, or_scalar: bool = False) -> None:
    batch = tuple(points.shape[:-2])
    if given.shape != batch and not (or_scalar and given.ndim == 0):
        expected = f"{batch} or ()" if or_scalar else f"{batch}"
        raise ValueError(f"{label}: expected shape {expected}, got {tuple(given.shape)}")
    if given.device != points.device:
        raise ValueError(f"{label}: expected device {points.device}, got {given.device}")


def check_values(arguments: OpArguments) -> None:
    """Check the values that tensors hold; on the CPU only, where reading them does not stall."""
    bandwidth = arguments.bandwidth
    if bandwidth is not None and not ((bandwidth > 0) & bandwidth.isfinite()).all():
        raise ValueError(
            "bandwidth: expected positive finite numbers (2 sigma^2, 1 / gamma),"
            f" got {bandwidth.tolist()}"
        )
    _check_range("x_lengths", arguments.x_lengths, arguments.x, arguments.unbiased)
    _check_range("y_lengths", arguments.y_lengths, arguments.y, arguments.unbiased)


def _check_range(name: str, lengths: Tensor | None, points: Tensor, unbiased: bool) -> None:
    if lengths is None or not lengths.numel():
        return
    rows = points.shape[-2]
    low, high = (int(end) for end in lengths.aminmax())
    if low < 1 or high > rows:
        raise ValueError(f"{name}: expected 1 to {rows} (rows of the sample), got {low} to {high}")
    if unbiased and low < 2:
        raise ValueError(f"{name}: the unbiased estimator needs at least 2 rows, got {low}")
