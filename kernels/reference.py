"""What MMD^2 and its gradient are: the one definition, in plain torch, for any floating dtype.

Shapes: ``x`` is (..., N, D), ``y`` is (..., M, D). The algebra is derived in README.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """The rows of one side, in the accumulator's dtype."""

    points: Tensor  # (..., n, D), zero beyond the length
    count: float | Tensor  # how many rows count; a tensor has shape (..., 1, 1)
    mask: Tensor | None  # (..., n, 1), None when every row counts


class Block(NamedTuple):
    """Rows of one sample against rows of another; None for what was not asked."""

    total: Tensor | None  # (...), float64: mean over the pairs of k(a, b), less k's constant
    slope: Tensor | None  # (..., n_a, n_b): dk / d(a.b), divided by the number of pairs


class Rule(NamedTuple):
    """The kernel function and the estimator."""

    name: str  # "gaussian_mean", "gaussian", "polynomial" or "linear"
    parameters: Sequence[float]  # scales; degree, gamma, coef0; nothing
    unbiased: bool


class Result(NamedTuple):
    """MMD^2 and its gradients; None for what was not asked."""

    value: Tensor | None
    grad_x: Tensor | None
    grad_y: Tensor | None


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64, float32 for every other floating dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sample(points: Tensor, lengths: Tensor | None) -> Sample:
    """Mark the rows that count; a length outside 1..n poisons the result with NaN."""
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

    Subtracting one row first makes equal rows exactly zero, and the mean accurate far from the origin.
    """
    anchor = x.points[..., :1, :].detach()
    x, y = _masked(x.points - anchor, x), _masked(y.points - anchor, y)
    total = x.points.detach().sum(-2, keepdim=True) + y.points.detach().sum(-2, keepdim=True)
    mean = total / (x.count + y.count)
    return _masked(x.points - mean, x), _masked(y.points - mean, y)


def mean_bandwidth(x: Sample, y: Sample) -> Tensor:
    """Mean squared distance over the pairs of distinct rows of the stacked, centred samples, (..., 1, 1)."""
    spread = x.points.detach().square().sum((-2, -1), keepdim=True)
    spread = spread + y.points.detach().square().sum((-2, -1), keepdim=True)
    bandwidth = 2 * spread / (x.count + y.count - 1)
    # zero only if all rows are equal: every distance is then zero, whatever divides it
    return bandwidth.masked_fill(bandwidth == 0, 1)


def given_bandwidth(bandwidth: Tensor, dtype: torch.dtype) -> Tensor:
    """A bandwidth tensor as (..., 1, 1); a value that is not positive and finite becomes NaN."""
    usable = (bandwidth > 0) & bandwidth.isfinite()
    return bandwidth.to(dtype).masked_fill(~usable, torch.nan)[..., None, None]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 of centred rows, (..., N, M)."""
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    # rounding can push the difference below zero
    return (squares - 2 * (x @ y.mT)).clamp_min(0)


def _gaussian(
    squared: Tensor, bandwidth: Tensor | None, scales: Sequence[float], value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``k - k(0)`` and ``dk / d(a.b)``; expm1 keeps the digits that ``exp - 1`` would cancel."""
    if bandwidth is not None:
        squared = squared / bandwidth
    k, k_slope = None, None
    if value:
        k = sum((torch.expm1(squared / -s) for s in scales), torch.zeros_like(squared))
    if slope:
        k_slope = sum(
            (torch.exp(squared / -s) * (2 / s) for s in scales), torch.zeros_like(squared)
        )
        k_slope = k_slope if bandwidth is None else k_slope / bandwidth
    return k, k_slope


def _polynomial(
    dot: Tensor, degree: float, gamma: float, coef0: float, value: bool, slope: bool
) -> tuple[Tensor | None, Tensor | None]:
    base = gamma * dot + coef0
    k = base**degree if value else None
    return k, degree * gamma * base ** (degree - 1) if slope else None


def _block(
    a: Sample, b: Sample, rule: Rule, bandwidth: Tensor | None, *, value: bool, slope: bool
) -> Block:
    same = a is b
    if rule.name == "polynomial":
        degree, gamma, coef0 = rule.parameters
        k, k_slope = _polynomial(a.points @ b.points.mT, degree, gamma, coef0, value, slope)
    else:
        squared = squared_distances(a.points, b.points)
        if same:
            squared.diagonal(dim1=-2, dim2=-1).zero_()
        k, k_slope = _gaussian(squared, bandwidth, rule.parameters, value, slope)
    pairs = a.count * (b.count - 1 if same and rule.unbiased else b.count)
    without_diagonal = same and (rule.unbiased or rule.name != "polynomial")
    k = _only_pairs(k, a, b, without_diagonal)
    k_slope = _only_pairs(k_slope, a, b, without_diagonal)
    total = (
        None if k is None else k.sum(-1, keepdim=True).sum(-2, keepdim=True, dtype=torch.float64)
    )
    return Block(
        total=None if total is None else (total / pairs)[..., 0, 0],
        slope=None if k_slope is None else k_slope / pairs,
    )


def _only_pairs(
    matrix: Tensor | None, a: Sample, b: Sample, without_diagonal: bool
) -> Tensor | None:
    if matrix is None:
        return None
    if without_diagonal:
        matrix.diagonal(dim1=-2, dim2=-1).zero_()
    if a.mask is not None:
        matrix = matrix.masked_fill(~a.mask, 0)
    if b.mask is not None:
        matrix = matrix.masked_fill(~b.mask.mT, 0)
    return matrix


def _pull(slope: Tensor, source: Sample, target: Sample, rule: Rule) -> Tensor:
    """Gradient of the mean of k over the pairs, in the rows of ``target``; slope is (..., target, source)."""
    pulled = slope @ source.points
    if rule.name == "polynomial":
        return pulled
    # k depends on a - b alone: a row is pulled by differences
    return pulled - slope.sum(-1, keepdim=True) * target.points


def _linear(x: Sample, y: Sample, rule: Rule, *, value: bool, grad_x: bool, grad_y: bool) -> Result:
    """MMD^2 is |mean x - mean y|^2; the unbiased one is less the variances of the two means."""
    x_mean = x.points.sum(-2, keepdim=True) / x.count
    y_mean = y.points.sum(-2, keepdim=True) / y.count
    difference = x_mean - y_mean
    x_rest, y_rest = _masked(x.points - x_mean, x).points, _masked(y.points - y_mean, y).points
    result = difference.square().sum((-2, -1), keepdim=True, dtype=torch.float64)
    x_pull, y_pull = 2 * difference / x.count, -2 * difference / y.count
    if rule.unbiased:
        x_pairs, y_pairs = x.count * (x.count - 1), y.count * (y.count - 1)
        for rest, pairs in ((x_rest, x_pairs), (y_rest, y_pairs)):
            result = result - rest.square().sum((-2, -1), keepdim=True, dtype=torch.float64) / pairs
        x_pull, y_pull = x_pull - 2 * x_rest / x_pairs, y_pull - 2 * y_rest / y_pairs
    return Result(
        value=result[..., 0, 0].to(difference.dtype) if value else None,
        grad_x=_masked(x_pull.expand_as(x_rest), x).points.contiguous() if grad_x else None,
        grad_y=_masked(y_pull.expand_as(y_rest), y).points.contiguous() if grad_y else None,
    )


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
    """MMD^2 per batch element and its gradients, without autograd.

    Blocks that nothing asked for needs are skipped: K(x, x) enters neither the gradient in ``y``, nor
    K(y, y) that in ``x``.
    """
    a, b = sample(x, x_lengths), sample(y, y_lengths)
    if rule.name != "polynomial":
        a, b = centre(a, b)
    if rule.name == "linear":
        return _linear(a, b, rule, value=value, grad_x=grad_x, grad_y=grad_y)
    width = None if bandwidth is None else given_bandwidth(bandwidth, a.points.dtype)
    if rule.name == "gaussian_mean":
        width = mean_bandwidth(a, b)
    cross = _block(b, a, rule, width, value=value, slope=grad_x or grad_y)
    totals, gradients = [], []
    for own, other, wanted in ((a, b, grad_x), (b, a, grad_y)):
        if not (value or wanted):
            gradients.append(None)
            continue
        block = _block(own, own, rule, width, value=value, slope=wanted)
        totals.append(block.total)
        gradients.append(_gradient(block, cross, own, other, rule, own is a) if wanted else None)
    if value:
        total = totals[0] + totals[1] - 2 * cross.total
    return Result(total.to(a.points.dtype) if value else None, *gradients)


def _gradient(
    block: Block, cross: Block, own: Sample, other: Sample, rule: Rule, transpose: bool
) -> Tensor:
    assert block.slope is not None
    assert cross.slope is not None
    slope = cross.slope.mT if transpose else cross.slope
    pull = _pull(block.slope, own, own, rule) - _pull(slope, other, own, rule)
    return _masked(2 * pull, own).points


def gram(
    x: Tensor, y: Tensor, name: str, parameters: Sequence[float], bandwidth: Tensor | None
) -> Tensor:
    """k(x_i, y_j), (..., N, M), for autograd to differentiate."""
    a, b = sample(x, None), sample(y, None)
    if name == "linear":
        return a.points @ b.points.mT
    if name == "polynomial":
        degree, gamma, coef0 = parameters
        return (gamma * (a.points @ b.points.mT) + coef0) ** degree
    a, b = centre(a, b)
    squared = squared_distances(a.points, b.points)
    if name == "gaussian_mean":
        squared = squared / mean_bandwidth(a, b)
    elif bandwidth is not None:
        squared = squared / given_bandwidth(bandwidth, squared.dtype)
    return sum((torch.exp(squared / -s) for s in parameters), torch.zeros_like(squared))
