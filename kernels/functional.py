"""The functions a caller uses, and the checks of what a caller passes."""

from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from . import ops, reference
from .families import Gaussian, Kernel, Linear, Polynomial

Estimator = Literal["biased", "unbiased"]
Precision = Literal["highest", "high", "medium"]
Reduction = Literal["mean", "sum", "none"]
Side = Literal["x", "y", "both"]

M3D_KERNEL = Gaussian()


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    estimator: Estimator = "biased",
    precision: Precision | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy of two samples, per batch element.

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` (Gretton et al. 2012, equations 3 and 5; with the
    default kernel the loss of M3D, arXiv 2312.15927, equation 9): as it is, no root, no absolute value.
    Value and gradient come out of one pass; there is no second derivative and no forward mode.

    Args:
        x: one sample, ``(..., N, D)``, any floating dtype. Sums are taken in float32, or in float64
            for float64 input.
        y: the other sample, ``(..., M, D)``, with the batch dimensions, dtype and device of ``x``
            (under autocast the dtypes may differ).
        kernel: ``Gaussian``, ``Polynomial`` or ``Linear``.
        estimator: "biased" averages over all pairs of ``x`` (V-statistic), "unbiased" over the pairs of
            distinct rows (U-statistic, which may be negative).
        precision: the least that will do: "highest" is float32, "high" about 1e-5, "medium" bfloat16;
            None follows ``torch.get_float32_matmul_precision()``.
        x_lengths: how many rows of each batch element count, integer ``(...)``; the others are ignored,
            whatever they hold, and get a zero gradient.
        y_lengths: the same for ``y``.

    Returns:
        ``(...)``, in the units of the kernel: float32, or float64 for float64 input. NaN or infinite rows
        that count give NaN. Zero if all points are equal.

    Raises:
        TypeError, ValueError: for arguments that do not fit, with what was expected and given. On a
            GPU the values of lengths and of a bandwidth tensor are not read: bad ones give NaN.
        NotImplementedError: for a second or a forward-mode derivative.
    """
    arguments = _op_arguments(x, y, kernel, estimator, precision, x_lengths, y_lengths)
    return ops.mmd2(*arguments, True, False, False)[0]


@overload
def mmd2_and_grad(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = ...,
    *,
    wrt: Literal["x", "y"] = ...,
    value: bool = ...,
    estimator: Estimator = ...,
    precision: Precision | None = ...,
    x_lengths: Tensor | None = ...,
    y_lengths: Tensor | None = ...,
) -> tuple[Tensor | None, Tensor]: ...


@overload
def mmd2_and_grad(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = ...,
    *,
    wrt: Literal["both"],
    value: bool = ...,
    estimator: Estimator = ...,
    precision: Precision | None = ...,
    x_lengths: Tensor | None = ...,
    y_lengths: Tensor | None = ...,
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]: ...


def mmd2_and_grad(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    wrt: Side = "y",
    value: bool = True,
    estimator: Estimator = "biased",
    precision: Precision | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | tuple[Tensor, Tensor]]:
    """MMD^2 and its gradient in one pass, without autograd.

    Args and errors are those of ``mmd2``, and:

    Args:
        wrt: the side to differentiate: "y", "x" or "both".
        value: False leaves the value out, and with it K(x, x) (or K(y, y)), which the gradient of the
            other side does not need.

    Returns:
        The value, ``(...)`` (None if left out), and the gradient of each batch element's own value: in
        ``y`` ``(..., M, D)``, in ``x`` ``(..., N, D)``, or the pair (in x, in y), each in the dtype of
        its sample. Neither is connected to autograd.
    """
    _check_choice("wrt", wrt, Side)
    arguments = _op_arguments(x, y, kernel, estimator, precision, x_lengths, y_lengths)
    with torch.no_grad():
        result, grad_x, grad_y = ops.mmd2(*arguments, value, wrt != "y", wrt != "x")
        grad_x, grad_y = grad_x.to(x.dtype), grad_y.to(y.dtype)
    gradient = {"x": grad_x, "y": grad_y, "both": (grad_x, grad_y)}[wrt]
    return result if value else None, gradient


class MMDLoss(nn.Module):
    """``mmd2`` as a module; see there for shapes and errors.

    Args:
        kernel: ``Gaussian``, ``Polynomial`` or ``Linear``. A bandwidth tensor in it stays on its device
            when the module moves.
        estimator: "biased" or "unbiased".
        reduction: over the batch dimensions: "mean", "sum" or "none".
        precision: as in ``mmd2``.
    """

    def __init__(
        self,
        kernel: Kernel = M3D_KERNEL,
        *,
        estimator: Estimator = "biased",
        reduction: Reduction = "mean",
        precision: Precision | None = None,
    ) -> None:
        super().__init__()
        _check_kernel(kernel)
        _check_choice("estimator", estimator, Estimator)
        _check_choice("reduction", reduction, Reduction)
        _check_precision(precision)
        self.kernel = kernel
        self.estimator: Estimator = estimator
        self.reduction: Reduction = reduction
        self.precision: Precision | None = precision

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_lengths: Tensor | None = None,
        y_lengths: Tensor | None = None,
    ) -> Tensor:
        """The loss of ``x`` (..., N, D) against ``y`` (..., M, D), reduced over the batch dimensions."""
        value = mmd2(
            x,
            y,
            self.kernel,
            estimator=self.estimator,
            precision=self.precision,
            x_lengths=x_lengths,
            y_lengths=y_lengths,
        )
        if self.reduction == "none":
            return value
        return value.mean() if self.reduction == "mean" else value.sum()

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{self.kernel}, estimator={self.estimator!r}, reduction={self.reduction!r}"


def gram(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """The kernel matrix ``k(x_i, y_j)``, ``(..., N, M)``.

    Differentiable by plain autograd, also twice, but not through the bandwidth of ``Gaussian("mean")``,
    which is that of the stacked ``[x; y]``. Follows torch's own matmul precision.

    Args:
        x: ``(..., N, D)``, any floating dtype; computed in float32, or in float64 for float64.
        y: ``(..., M, D)``, with the batch dimensions, dtype and device of ``x``.
        kernel: ``Gaussian``, ``Polynomial`` or ``Linear``.

    Raises:
        TypeError, ValueError: as in ``mmd2``, but a bad value in a bandwidth tensor gives NaN.
    """
    _check_samples(x, y)
    _check_kernel(kernel)
    name, parameters, bandwidth = kernel.encode(x.shape[-1])
    _check_batch("bandwidth", bandwidth, x, scalar=True)
    with torch.autocast(x.device.type, enabled=False):
        return reference.gram(x, y, name, parameters, bandwidth)


def _op_arguments(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    estimator: Estimator,
    precision: Precision | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> tuple[Any, ...]:
    """Check what the caller passed; as the op takes it, but for the flags at its end."""
    _check_samples(x, y)
    _check_kernel(kernel)
    _check_choice("estimator", estimator, Estimator)
    _check_precision(precision)
    _check_lengths("x_lengths", x_lengths, x)
    _check_lengths("y_lengths", y_lengths, y)
    unbiased = estimator == "unbiased"
    for label, points, lengths in (("x", x, x_lengths), ("y", y, y_lengths)):
        if unbiased and points.shape[-2] < 2:
            raise ValueError(f"{label}: the unbiased estimator needs at least 2 rows, got 1")
    name, parameters, bandwidth = kernel.encode(x.shape[-1])
    _check_batch("bandwidth", bandwidth, x, scalar=True)
    return x, y, bandwidth, x_lengths, y_lengths, name, parameters, unbiased, precision


def _check_samples(x: Tensor, y: Tensor) -> None:
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


def _check_kernel(kernel: Kernel) -> None:
    if not isinstance(kernel, Gaussian | Polynomial | Linear):
        raise TypeError(f"kernel: expected Gaussian, Polynomial or Linear, got {kernel!r}")


def _check_choice(label: str, given: object, choices: Any) -> None:
    allowed = get_args(choices)
    if given not in allowed:
        raise ValueError(f"{label}: expected one of {', '.join(map(repr, allowed))}, got {given!r}")


def _check_precision(precision: Precision | None) -> None:
    if precision is not None:
        _check_choice("precision", precision, Precision)


def _check_lengths(label: str, lengths: Tensor | None, points: Tensor) -> None:
    if lengths is None:
        return
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{label}: expected an int32 or int64 tensor, got {given}")
    _check_batch(label, lengths, points, scalar=False)


def _check_batch(label: str, given: Tensor | None, points: Tensor, *, scalar: bool) -> None:
    """One number per batch element, on the samples' device."""
    if given is None:
        return
    batch = points.shape[:-2]
    if given.shape != batch and not (scalar and given.ndim == 0):
        expected = f"{tuple(batch)} or ()" if scalar else str(tuple(batch))
        raise ValueError(f"{label}: expected shape {expected}, got {tuple(given.shape)}")
    if given.device != points.device:
        raise ValueError(f"{label}: expected device {points.device}, got {given.device}")
