"""The value of a kernel function, and its slope in each view, for the pairs of a tile.

The *excess* of a kernel is ``k - k(0)`` where it is a function of ``|a - b|`` (it keeps the digits
that a difference from a large constant would cancel), and ``k`` itself for one of ``a.b``. The
*slope* is ``dk / d(a.b)``, which for a function of the distance is ``-2 dk / d|a - b|^2``, and for
one of the distance in the norm of absolute differences its derivative in that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpu import gaussian_mixture
from .expression import Node

Width = Tensor | None  # (c, 1, 1), of the mean rule


class Evaluation:
    """A kernel on one tile.

    Args:
        root: the kernel.
        pairs: of each view ``|a - b|^2``, ``a.b`` or ``|a - b|_1``, (c, rows of a, rows of b).
        widths: of each view the mean bandwidth.
    """

    def __init__(self, root: Node, pairs: Sequence[Tensor], widths: Sequence[Width]) -> None:
        self.root, self.pairs, self.widths = root, pairs, widths
        self._excess: dict[int, Tensor] = {}

    def excess(self, node: Node | None = None) -> Tensor:
        """The excess of a kernel, of all of it by default; not to be overwritten."""
        node = self.root if node is None else node
        known = self._excess.get(id(node))
        if known is None:
            known = self._excess[id(node)] = self._compute_excess(node)
        return known

    def _compute_excess(self, node: Node) -> Tensor:
        if not node.parts:
            return _leaf_excess(node, self.pairs[node.view], self.widths[node.view])
        if node.name == "sum":
            return torch.stack([self.excess(part) for part in node.parts]).sum(0)
        # (c + e)(d + f) - cd = e (d + f) + c f
        constant, excess = at_zero(node.parts[0]), self.excess(node.parts[0])
        for part in node.parts[1:]:
            own, own_constant = self.excess(part), at_zero(part)
            excess = excess * (own + own_constant) + constant * own
            constant *= own_constant
        return excess

    def slopes(self) -> list[Tensor]:
        """The slope in each view, (c, rows of a, rows of b)."""
        slopes: list[Tensor | None] = [None] * len(self.pairs)
        self._add_slopes(self.root, None, slopes)
        assert all(slope is not None for slope in slopes)
        return slopes  # type: ignore[return-value]

    def _add_slopes(self, node: Node, outer: Tensor | None, slopes: list[Tensor | None]) -> None:
        if not node.parts:
            slope = _leaf_slope(node, self.pairs[node.view], self.widths[node.view])
            slope = slope if outer is None else slope * outer
            before = slopes[node.view]
            slopes[node.view] = slope if before is None else before + slope
            return
        for part in node.parts:
            factor = outer
            if node.name == "product":
                for other in node.parts:
                    if other is not part:
                        k = self.excess(other) + at_zero(other)
                        factor = k if factor is None else factor * k
            self._add_slopes(part, factor, slopes)


def at_zero(node: Node) -> float:
    """The constant that the excess leaves out."""
    if node.name == "sum":
        return sum(map(at_zero, node.parts))
    if node.name == "product":
        product = 1.0
        for part in node.parts:
            product *= at_zero(part)
        return product
    constants = {
        "gaussian": len(node.numbers),
        "gaussian_mean": len(node.numbers),
        "laplacian": 1,
        "laplacian_l1": 1,
        "rational_quadratic": len(node.numbers) - 1,
    }
    return float(constants.get(node.name, 0))


def _gaussian_exponent(node: Node, squared: Tensor, width: Width) -> Tensor:
    scale = max(node.numbers)
    return squared / (-scale if width is None else -scale * width)


def _leaf_excess(node: Node, pairs: Tensor, width: Width) -> Tensor:
    numbers = node.numbers
    if node.name in ("gaussian", "gaussian_mean"):
        exponent = _gaussian_exponent(node, pairs, width if node.name == "gaussian_mean" else None)
        return gaussian_mixture.sum_excess(exponent, gaussian_mixture.group_scales(numbers))
    if node.name == "laplacian":
        return pairs.sqrt().div_(-numbers[0]).expm1_()
    if node.name == "laplacian_l1":
        return (pairs / -numbers[0]).expm1_()
    if node.name == "rational_quadratic":
        bandwidth, *alphas = numbers
        parts = [torch.log1p(pairs / (a * bandwidth)).mul_(-a).expm1_() for a in alphas]
        return torch.stack(parts).sum(0)
    if node.name == "energy":
        return -(pairs.sqrt() if numbers[0] == 1 else pairs ** (numbers[0] / 2))
    if node.name == "linear":
        return pairs
    degree, gamma, coef0 = numbers
    return (gamma * pairs + coef0) ** int(degree)


def _leaf_slope(node: Node, pairs: Tensor, width: Width) -> Tensor:
    numbers = node.numbers
    if node.name in ("gaussian", "gaussian_mean"):
        width = width if node.name == "gaussian_mean" else None
        runs = gaussian_mixture.group_scales(numbers)
        slope = gaussian_mixture.sum_slopes(_gaussian_exponent(node, pairs, width), runs)
        return slope * 2 if width is None else slope * (2 / width)
    if node.name == "laplacian":
        distances = pairs.sqrt()
        slope = (distances / -numbers[0]).exp_().div_(distances * numbers[0])
        return _zero_where_coincident(slope, pairs)
    if node.name == "laplacian_l1":
        return (pairs / -numbers[0]).exp_().div_(-numbers[0])
    if node.name == "rational_quadratic":
        bandwidth, *alphas = numbers
        powers = [(1 + pairs / (a * bandwidth)) ** (-a - 1) for a in alphas]
        return torch.stack(powers).sum(0).mul_(2 / bandwidth)
    if node.name == "energy":
        exponent = numbers[0]
        if exponent == 1:
            return _zero_where_coincident(pairs.rsqrt(), pairs)
        return _zero_where_coincident(exponent * pairs ** (exponent / 2 - 1), pairs)
    if node.name == "linear":
        return torch.ones_like(pairs)
    degree, gamma, coef0 = numbers
    return degree * gamma * (gamma * pairs + coef0) ** (int(degree) - 1)


def _zero_where_coincident(slope: Tensor, pairs: Tensor) -> Tensor:
    return slope.masked_fill_(pairs == 0, 0)
