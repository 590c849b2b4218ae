"""A sum of Gaussians over several scales, from one matrix of exponents in few passes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

LOG2_E = 1 / math.log(2)


class Run(NamedTuple):
    """Scales that are each half of the previous one: each kernel is the square of the previous."""

    largest: float
    length: int


def group_scales(scales: Sequence[float]) -> list[Run]:
    """Group scales, in descending order, into runs of at most five: squaring doubles the error."""
    runs: list[Run] = []
    for scale in sorted(scales, reverse=True):
        last = runs[-1] if runs else Run(0.0, 0)
        if last.length < 5 and scale * 2**last.length == last.largest:
            runs[-1] = Run(last.largest, last.length + 1)
        else:
            runs.append(Run(scale, 1))
    return runs


def sum_excess(exponent: Tensor, runs: list[Run]) -> Tensor:
    """Sum ``exp(exponent / s) - 1`` over the scales s, accurate however small the sum is.

    ``exponent`` is already divided by the largest scale; it is overwritten.
    """
    total = None
    for largest, length in reversed(runs):
        factor = runs[0].largest / largest
        term = (exponent if factor == 1 else exponent * factor).expm1_()
        total = (term.clone() if length > 1 else term) if total is None else total.add_(term)
        for k in range(1, length):
            # with e = expm1(v), expm1(2 v) = 2 e + e^2; the term is that divided by 2^k
            term.addcmul_(term, term, value=2.0 ** (k - 2))
            total.add_(term, alpha=2.0**k)
    assert total is not None
    return total


def sum_slopes(exponent: Tensor, runs: list[Run]) -> Tensor:
    """Sum ``exp(exponent / s) / s`` over the scales s; ``exponent`` as in ``sum_excess``, kept."""
    total = None
    for largest, length in runs:
        # not 1 + expm1, which cancels at large distances; exp2 is three times faster than exp
        term = (exponent * (LOG2_E * runs[0].largest / largest)).exp2_()
        total = term / largest if total is None else total.add_(term, alpha=1 / largest)
        for k in range(1, length):
            term.mul_(term)
            total.add_(term, alpha=2.0**k / largest)
    assert total is not None
    return total
