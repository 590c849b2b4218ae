"""The public functions, which check their arguments and call the op."""

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from . import checks, ops, reference
from .arguments import OpArguments
from .checks import Estimator, Precision, Reduction, WithRespectTo
from .combinations import OWN_PATH, Kernel
from .general import dense, expression, op, tiled
from .general.op import WeightedArguments
from .kernel_functions import M3D_KERNEL


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    estimator: Estimator = "biased",
    precision: Precision | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy of two samples, per batch element.

    ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``, without square root or absolute value. From
    Gretton et al. 2012, A Kernel Two-Sample Test (the square of its equation 5 if biased, its
    equation 3 if unbiased); with the default kernel the loss of M3D (arXiv 2312.15927, equation 9).
    Value and gradient are computed in one pass; there is no second or forward-mode derivative.

    Args:
        x: one sample, ``(..., N, D)``, any floating dtype; computed in float32, or in float64 for
            float64. Its gradient has the dtype of ``x``.
        y: the other sample, ``(..., M, D)``, with the batch dimensions, dtype and device of ``x``
            (under autocast the dtypes may differ).
        kernel: ``Gaussian``, ``Polynomial`` or ``Linear``, which have kernels of their own, or
            ``Laplacian``, ``RationalQuadratic``, ``Energy``, ``Sum``, ``Product`` or ``Features``,
            computed tile by tile in plain torch.
        estimator: "biased" averages over all pairs within a sample (V-statistic), "unbiased" over
            the pairs of distinct rows (U-statistic, which may be negative).
        precision: the lowest acceptable: "highest" is that of float32, "high" about 1e-5,
            "medium" that of bfloat16; None follows torch's setting for matrix products on a GPU.
            A CPU computes in float32 unless "medium" is asked for and gains: with AMX instructions
            and torch 2.9, for 64 rows or more of both samples and 256 columns, unweighted. It then
            changes torch's setting of the process while it computes, which other threads' float32
            products on the CPU may see.
        x_lengths: number of rows that count in each batch element, integer ``(...)``; the others
            are ignored, whatever their values, and their gradient is zero.
        y_lengths: the same for ``y``.
        x_weights: weights of the rows instead of equal ones, floating ``(..., N)``, not negative,
            with any positive sum; rows of weight zero are ignored and have a zero gradient. The
            unbiased estimator then divides by the weight of the pairs of distinct rows, and the
            "mean" bandwidth is that of all rows of positive weight. No gradient flows to them.
            Computed tile by tile in plain torch.
        y_weights: the same for ``y``.

    Returns:
        ``(...)``, in the units of the kernel: float32, or float64 for float64 input. NaN and
        infinity in rows that count propagate. If all points are equal, the value
        and the gradient are zero (with ``Polynomial`` up to rounding).

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given. On a GPU the
            values of lengths and of a bandwidth tensor are not read: invalid ones give NaN.
        NotImplementedError: for a second or a forward-mode derivative.
    """
    arguments = _check_arguments(x, y, kernel, estimator, precision, x_lengths, y_lengths)
    if arguments is not None and x_weights is None and y_weights is None:
        return ops.compute_value(arguments)
    unbiased = estimator == "unbiased"
    checks.check_weights("x_weights", x_weights, x, unbiased)
    checks.check_weights("y_weights", y_weights, y, unbiased)
    return op.compute_value(
        _encode_weighted(
            x,
            y,
            _weigh_rows(x, x_weights, x_lengths),
            _weigh_rows(y, y_weights, y_lengths),
            kernel,
            unbiased,
        )
    )


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
    x_weights: Tensor | None = ...,
    y_weights: Tensor | None = ...,
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
    x_weights: Tensor | None = ...,
    y_weights: Tensor | None = ...,
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]: ...


def mmd2_and_grad(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    wrt: WithRespectTo = "y",
    value: bool = True,
    estimator: Estimator = "biased",
    precision: Precision | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | tuple[Tensor, Tensor]]:
    """MMD^2 and its gradient in one pass, without autograd.

    Other arguments and the errors are those of ``mmd2``.

    Args:
        wrt: the sample to differentiate: "y", "x" or "both".
        value: False omits the value, and with it K(x, x) or K(y, y), which the gradient in the
            other sample does not need.

    Returns:
        The value, ``(...)`` (None if omitted), and the gradient of each batch element's own value:
        in ``y`` ``(..., M, D)``, in ``x`` ``(..., N, D)``, or the pair (in x, in y), each in the
        dtype of its sample. None of them is part of an autograd graph.
    """
    checks.check_choice("wrt", wrt, checks.SIDES)
    arguments = _check_arguments(x, y, kernel, estimator, precision, x_lengths, y_lengths)
    if arguments is None or x_weights is not None or y_weights is not None:
        return _differentiate(
            x,
            y,
            kernel,
            wrt,
            value,
            estimator=estimator,
            x_lengths=x_lengths,
            y_lengths=y_lengths,
            x_weights=x_weights,
            y_weights=y_weights,
        )
    with torch.no_grad():
        # the last three arguments are what is requested
        result, grad_x, grad_y = ops.mmd2(*arguments[:-3], value, wrt != "y", wrt != "x")
        grad_x, grad_y = grad_x.to(x.dtype), grad_y.to(y.dtype)
    gradient = {"x": grad_x, "y": grad_y, "both": (grad_x, grad_y)}[wrt]
    return result if value else None, gradient


class MMDLoss(nn.Module):
    """``mmd2`` as a module; see there for shapes and errors.

    Args:
        kernel: as in ``mmd2``; None means ``Gaussian()``. A
            bandwidth tensor in it stays on its device when the module moves.
        estimator: "biased" or "unbiased".
        reduction: over the batch dimensions: "mean", "sum" or "none".
        precision: as in ``mmd2``.
    """

    def __init__(
        self,
        kernel: Kernel | None = None,  # torch 2.11 cannot compile a constructor's other defaults
        *,
        estimator: Estimator = "biased",
        reduction: Reduction = "mean",
        precision: Precision | None = None,
    ) -> None:
        super().__init__()
        kernel = M3D_KERNEL if kernel is None else kernel
        checks.check_kernel(kernel)
        checks.check_choice("estimator", estimator, checks.ESTIMATORS)
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        checks.check_precision(precision)
        self.kernel: Kernel = kernel
        self.estimator: Estimator = estimator
        self.reduction: Reduction = reduction
        self.precision: Precision | None = precision

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        x_lengths: Tensor | None = None,
        y_lengths: Tensor | None = None,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss between ``x`` (..., N, D) and ``y`` (..., M, D), reduced over the batch."""
        value = mmd2(
            x,
            y,
            self.kernel,
            estimator=self.estimator,
            precision=self.precision,
            x_lengths=x_lengths,
            y_lengths=y_lengths,
            x_weights=x_weights,
            y_weights=y_weights,
        )
        if self.reduction == "none":
            return value
        return value.mean() if self.reduction == "mean" else value.sum()

    def extra_repr(self) -> str:
        """Return the settings that ``print(module)`` shows."""
        return f"{self.kernel}, estimator={self.estimator!r}, reduction={self.reduction!r}"


def gram(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """The kernel matrix ``k(x_i, y_j)``, ``(..., N, M)``.

    The bandwidth of ``Gaussian("mean")`` is that of the stacked ``[x; y]``. Differentiable by plain
    autograd, also twice (once for ``Laplacian(norm="l1")``), but not through that bandwidth.
    Follows torch's matmul precision.

    Args:
        x: ``(..., N, D)``, any floating dtype; computed in float32, or in float64 for float64.
        y: ``(..., M, D)``, with the batch dimensions, dtype and device of ``x``.
        kernel: as in ``mmd2``.

    Raises:
        TypeError, ValueError: as in ``mmd2``, but an invalid value in a bandwidth tensor gives NaN.
    """
    checks.check_samples(x, y)
    checks.check_kernel(kernel)
    if not isinstance(kernel, OWN_PATH):
        with torch.autocast(x.device.type, enabled=False):
            return dense.gram(x, y, kernel)
    name, parameters, bandwidth = kernel.encode(x.shape[-1])
    checks.check_bandwidth(bandwidth, x)
    with torch.autocast(x.device.type, enabled=False):
        return reference.gram(x, y, name, parameters, bandwidth)


def _weigh_rows(points: Tensor, weights: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Weights as the op takes them, (..., 1, n) with the sum 1; None if all rows weigh the same."""
    if weights is None and lengths is None:
        return None
    dtype = reference.accumulator_dtype(points.dtype)
    if weights is None:
        weights = points.new_ones(points.shape[:-1], dtype=dtype)
    weights = weights.to(dtype)
    if lengths is not None:
        counts = torch.arange(points.shape[-2], device=points.device) < lengths[..., None]
        weights = weights.masked_fill(~counts, 0)
    return tiled.normalise(weights)[..., None, :]


def _encode_weighted(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    kernel: Kernel,
    unbiased: bool,
) -> WeightedArguments:
    encoded, x, y = expression.encode(kernel, x, y)
    return WeightedArguments(x, y, x_weights, y_weights, *encoded, unbiased)


def _differentiate(
    x: Tensor, y: Tensor, kernel: Kernel, wrt: WithRespectTo, value: bool, **options: Any
) -> tuple[Tensor | None, Tensor | tuple[Tensor, Tensor]]:
    """Value and gradient of the weighted op, through the features that a kernel selects."""
    with torch.enable_grad():
        x, y = x.detach().requires_grad_(wrt != "y"), y.detach().requires_grad_(wrt != "x")
        result = mmd2(x, y, kernel, **options)
        gradients = torch.autograd.grad(result.sum(), [one for one in (x, y) if one.requires_grad])
    gradient = (gradients[0], gradients[1]) if wrt == "both" else gradients[0]
    return result.detach() if value else None, gradient


def _check_arguments(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    estimator: Estimator,
    precision: Precision | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
) -> OpArguments | None:
    """Check what the caller passed, and encode it for the op, which computes the value alone.

    None if the kernel is one that the op does not have.
    """
    checks.check_samples(x, y)
    checks.check_kernel(kernel)
    checks.check_choice("estimator", estimator, checks.ESTIMATORS)
    checks.check_precision(precision)
    checks.check_lengths("x_lengths", x_lengths, x)
    checks.check_lengths("y_lengths", y_lengths, y)
    checks.check_rows("x", x, estimator)
    checks.check_rows("y", y, estimator)
    if not isinstance(kernel, OWN_PATH):
        return None
    name, parameters, bandwidth = kernel.encode(x.shape[-1])
    checks.check_bandwidth(bandwidth, x)
    unbiased = estimator == "unbiased"
    return OpArguments(x, y, bandwidth, x_lengths, y_lengths, name, parameters, unbiased, precision)
