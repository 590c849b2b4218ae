"""The definition of MMD^2 and its gradient, in plain torch, for any floating dtype.

Shapes: ``x`` is (..., N, D), ``y`` is (..., M, D). The algebra is derived in README.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """The rows of one sample, in the accumulator's dtype."""

    points: Tensor  # (..., n, D), zero beyond the length
    rows: float | Tensor  # number of rows that count; a tensor is (..., 1, 1)
    mask: Tensor | None  # (..., n, 1), None when every row counts
    squares: Tensor | None = None  # (..., n), |row|^2, once centred


class Rule(NamedTuple):
    """The kernel function and the estimator."""

    name: str  # "gaussian_mean", "gaussian", "polynomial" or "linear"
    parameters: Sequence[float]  # scales; degree, gamma, coef0; nothing
    unbiased: bool


class Block(NamedTuple):
    """Rows of one sample against rows of another, divided by the number of pairs."""

    total: Tensor | float  # (...), float64: sum of k(a, b) - k(0); 0.0 unless requested
    slope: Tensor | None  # (..., n_a, n_b): dk / d(a.b); None unless requested


class Result(NamedTuple):
    """MMD^2 and its gradients, None where not requested."""

    value: Tensor | None
    grad_x: Tensor | None
    grad_y: Tensor | None


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64, float32 for every other floating dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sample(points: Tensor, lengths: Tensor | None) -> Sample:
    """Mark the rows that count; a length outside 1..n makes the result NaN."""
    points = points.to(accumulator_dtype(points.dtype))
    rows = points.shape[-2]
    if lengths is None:
        return Sample(points, float(rows), None)
    mask = torch.arange(rows, device=points.device) < lengths[..., None]
    valid = (lengths >= 1) & (lengths <= rows)
    count = lengths.to(points.dtype).masked_fill(~valid, torch.nan)[..., None, None]
    return _masked(points, Sample(points, count, mask[..., None]))


def _masked(points: Tensor, like: Sample) -> Sample:
    if like.mask is not None:
        # not a product: ignored rows may hold NaN
        points = points.masked_fill(~like.mask, 0)
    return like._replace(points=points)


def centre(x: Sample, y: Sample) -> tuple[Sample, Sample]:
    """Move the origin to the mean of the stacked samples.

    Subtracting one row first makes equal rows exactly zero, and the mean accurate far from the
    origin. The origin is a constant to autograd: distances do not depend on it.
    """
    anchor = x.points[..., :1, :].detach()
    x, y = _masked(x.points - anchor, x), _masked(y.points - anchor, y)
    total = x.points.detach().sum(-2, keepdim=True) + y.points.detach().sum(-2, keepdim=True)
    mean = total / (x.rows + y.rows)
    return _with_squares(_masked(x.points - mean, x)), _with_squares(_masked(y.points - mean, y))


def _with_squares(side: Sample) -> Sample:
    return side._replace(squares=side.points.square().sum(-1))


def mean_bandwidth(x: Sample, y: Sample) -> Tensor:
    """Mean squared distance over pairs of distinct rows of the stacked, centred samples.

    Returns:
        (..., 1, 1), a constant to autograd.
    """
    assert x.squares is not None
    assert y.squares is not None
    spread = x.squares.detach().sum(-1) + y.squares.detach().sum(-1)
    bandwidth = 2 * spread[..., None, None] / (x.rows + y.rows - 1)
    # zero only if all rows are equal: every distance is then zero, whatever divides it
    return bandwidth.masked_fill(bandwidth == 0, 1)


def prepare_bandwidth(bandwidth: Tensor, dtype: torch.dtype) -> Tensor:
    """Reshape to (..., 1, 1), and set values that are not positive and finite to NaN."""
    usable = (bandwidth > 0) & bandwidth.isfinite()
    return bandwidth.to(dtype).masked_fill(~usable, torch.nan)[..., None, None]


def squared_distances(x: Sample, y: Sample) -> Tensor:
    """|x_i - y_j|^2 of centred rows, (..., N, M)."""
    assert x.squares is not None
    assert y.squares is not None
    squares = x.squares[..., :, None] + y.squares[..., None, :]
    # rounding can push the difference below zero
    return (squares - 2 * (x.points @ y.points.mT)).clamp_min(0)


def _gaussian(
    squared: Tensor, bandwidth: Tensor | None, scales: Sequence[float], value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``k - k(0)`` and ``dk / d(a.b)``; expm1 keeps the digits that ``exp - 1`` would cancel."""
    if bandwidth is not None:
        squared = squared / bandwidth
    zero = torch.zeros_like(squared)
    k = sum((torch.expm1(squared / -s) for s in scales), zero) if value else None
    if not slope:
        return k, None
    k_slope = sum((torch.exp(squared / -s) * (2 / s) for s in scales), zero)
    return k, k_slope if bandwidth is None else k_slope / bandwidth


def _polynomial(
    dot: Tensor, parameters: Sequence[float], value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    degree, gamma, coef0 = int(parameters[0]), *parameters[1:]
    base = gamma * dot + coef0
    k = base**degree if value else None
    return k, degree * gamma * base ** (degree - 1) if slope else None


def _block(
    a: Sample, b: Sample, rule: Rule, bandwidth: Tensor | None, *, value: bool, slope: bool
) -> Block:
    same = a is b
    if rule.name == "polynomial":
        k, k_slope = _polynomial(a.points @ b.points.mT, rule.parameters, value, slope)
    else:
        squared = squared_distances(a, b)
        k, k_slope = _gaussian(squared, bandwidth, rule.parameters, value, slope)
    pairs = a.rows * (b.rows - 1 if same and rule.unbiased else b.rows)
    # on a Gaussian's diagonal k - k(0) is zero, whatever rounding makes of the distances
    without_diagonal = same and (rule.unbiased or rule.name != "polynomial")
    total: Tensor | float = 0.0
    if k is not None:
        k = _only_pairs(k, a, b, without_diagonal).sum(-1, keepdim=True)
        total = (k.sum(-2, keepdim=True, dtype=torch.float64) / pairs)[..., 0, 0]
    if k_slope is not None:
        k_slope = _only_pairs(k_slope, a, b, without_diagonal) / pairs
    return Block(total, k_slope)


def _only_pairs(matrix: Tensor, a: Sample, b: Sample, without_diagonal: bool) -> Tensor:
    if without_diagonal:
        matrix.diagonal(dim1=-2, dim2=-1).zero_()
    if a.mask is not None:
        matrix = matrix.masked_fill(~a.mask, 0)
    if b.mask is not None:
        matrix = matrix.masked_fill(~b.mask.mT, 0)
    return matrix


def _sum_gradient_terms(slope: Tensor | None, source: Sample, target: Sample, rule: Rule) -> Tensor:
    """Sum the gradient terms of the rows of ``source`` in those of ``target`` (slope's rows)."""
    assert slope is not None
    terms = slope @ source.points
    if rule.name == "polynomial":
        return terms
    # k depends on a - b alone: its gradient is a sum of differences
    return terms - slope.sum(-1, keepdim=True) * target.points


def _linear(
    x: Sample, y: Sample, unbiased: bool, *, value: bool, grad_x: bool, grad_y: bool
) -> Result:
    """|mean x - mean y|^2; if unbiased, minus the variances of the two means."""
    means = [side.points.sum(-2, keepdim=True) / side.rows for side in (x, y)]
    difference = means[0] - means[1]
    total = difference.square().sum((-2, -1), keepdim=True, dtype=torch.float64)
    gradients: list[Tensor | None] = []
    for side, mean, sign, wanted in ((x, means[0], 2, grad_x), (y, means[1], -2, grad_y)):
        rest = _masked(side.points - mean, side).points
        gradient = sign * difference / side.rows
        if unbiased:
            pairs = side.rows * (side.rows - 1)
            total = total - rest.square().sum((-2, -1), keepdim=True, dtype=torch.float64) / pairs
            gradient = gradient - 2 * rest / pairs
        gradient = _masked(gradient.expand_as(rest), side).points.contiguous()
        gradients.append(gradient if wanted else None)
    return Result(total[..., 0, 0].to(difference.dtype) if value else None, *gradients)


def mmd2(
    x: Tensor,
    y: Tensor,
    rule: Rule,
    *,
    bandwidth: Tensor | None = None,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    value: bool = True,
    grad_x: bool = False,
    grad_y: bool = False,
) -> Result:
    """Compute MMD^2 per batch element and its gradients, without autograd.

    K(x, x) is skipped unless the value or the gradient in x needs it, and K(y, y) likewise.
    """
    a, b = sample(x, x_lengths), sample(y, y_lengths)
    if rule.name != "polynomial":
        a, b = centre(a, b)
    if rule.name == "linear":
        return _linear(a, b, rule.unbiased, value=value, grad_x=grad_x, grad_y=grad_y)
    width = None if bandwidth is None else prepare_bandwidth(bandwidth, a.points.dtype)
    if rule.name == "gaussian_mean":
        width = mean_bandwidth(a, b)
    cross = _block(a, b, rule, width, value=value, slope=grad_x or grad_y)
    total, gradients = -2 * cross.total, []
    for own, other, wanted in ((a, b, grad_x), (b, a, grad_y)):
        gradient = None
        if value or wanted:
            block = _block(own, own, rule, width, value=value, slope=wanted)
            total = total + block.total
        if wanted:
            slope = cross.slope if own is a or cross.slope is None else cross.slope.mT
            terms = _sum_gradient_terms(block.slope, own, own, rule) - _sum_gradient_terms(
                slope, other, own, rule
            )
            gradient = _masked(2 * terms, own).points
        gradients.append(gradient)
    return Result(total.to(a.points.dtype) if isinstance(total, Tensor) else None, *gradients)


def gram(
    x: Tensor, y: Tensor, name: str, parameters: Sequence[float], bandwidth: Tensor | None
) -> Tensor:
    """Compute k(x_i, y_j), (..., N, M), differentiable by autograd."""
    a, b = sample(x, None), sample(y, None)
    if name == "linear":
        return a.points @ b.points.mT
    if name == "polynomial":
        degree, gamma, coef0 = parameters
        return (gamma * (a.points @ b.points.mT) + coef0) ** int(degree)
    a, b = centre(a, b)
    squared = squared_distances(a, b)
    if name == "gaussian_mean":
        squared = squared / mean_bandwidth(a, b)
    elif bandwidth is not None:
        squared = squared / prepare_bandwidth(bandwidth, squared.dtype)
    return sum((torch.exp(squared / -s) for s in parameters), torch.zeros_like(squared))
