"""A kernel function as plain lists for the op's schema, and back as a tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..combinations import Features, Kernel, Product, Sum

Pairs = Literal["dot", "squared", "l1"]  # a.b, |a - b|^2, the sum of |a_d - b_d| over features
# what a kernel is a function of, unless of |a - b|^2
OTHER_PAIRS: dict[str, Pairs] = {"polynomial": "dot", "linear": "dot", "laplacian_l1": "l1"}


class Expression(NamedTuple):
    """A kernel function in postfix order, and the columns that each of its parts sees.

    Attributes:
        names: of single kernels, as in ``Encoded``, or "sum" and "product".
        counts: how many numbers belong to a single kernel, how many parts to a combination.
        views: which range of columns a single kernel sees; -1 for a combination.
        numbers: the parameters of the single kernels, one after the other.
        bounds: the ends of the ranges of columns, from 0.
    """

    names: list[str]
    counts: list[int]
    views: list[int]
    numbers: list[float]
    bounds: list[int]


@dataclass(frozen=True)
class Node:
    """A kernel in the tree: a single one with its numbers and view, or a combination of parts."""

    name: str
    numbers: tuple[float, ...] = ()
    view: int = -1
    parts: tuple["Node", ...] = ()


def find_pairs(name: str) -> Pairs:
    """Find what a single kernel is a function of."""
    return OTHER_PAIRS.get(name, "squared")


class _Encoder:
    """Collects the lists of an ``Expression``, and the columns it is about."""

    def __init__(self) -> None:
        self.expression = Expression([], [], [], [], [0])
        self.views: list[tuple[Tensor, Tensor, Pairs]] = []

    def add(self, kernel: Kernel, x: Tensor, y: Tensor) -> None:
        if isinstance(kernel, Features):
            self.add(kernel.kernel, kernel.select(x), kernel.select(y))
        elif isinstance(kernel, (Sum, Product)):
            for part in kernel.kernels:
                self.add(part, x, y)
            name = "sum" if isinstance(kernel, Sum) else "product"
            self._append(name, len(kernel.kernels), -1)
        else:
            name, numbers, bandwidth = kernel.encode(x.shape[-1])
            if bandwidth is not None:
                # one number per batch element, in units of squared distance
                scale = _square_root(bandwidth, x)
                x, y = x / scale, y / scale
            self._append(name, len(numbers), self._find_view(x, y, find_pairs(name)))
            self.expression.numbers.extend(numbers)

    def _append(self, name: str, count: int, view: int) -> None:
        self.expression.names.append(name)
        self.expression.counts.append(count)
        self.expression.views.append(view)

    def _find_view(self, x: Tensor, y: Tensor, pairs: Pairs) -> int:
        for number, view in enumerate(self.views):
            if view[0] is x and view[1] is y and view[2] == pairs:
                return number
        self.views.append((x, y, pairs))
        self.expression.bounds.append(self.expression.bounds[-1] + x.shape[-1])
        return len(self.views) - 1


def _square_root(bandwidth: Tensor, x: Tensor) -> Tensor:
    usable = (bandwidth > 0) & bandwidth.isfinite()
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not usable.all():
        raise ValueError(
            "bandwidth: expected positive finite numbers (2 sigma^2, 1 / gamma),"
            f" got {bandwidth.tolist()}"
        )
    root = bandwidth.masked_fill(~usable, torch.nan).sqrt()[..., None, None]
    return root if x.dtype == torch.float64 else root.float()


def encode(kernel: Kernel, x: Tensor, y: Tensor) -> tuple[Expression, Tensor, Tensor]:
    """Encode a kernel; the samples returned hold the columns that its parts see, side by side."""
    encoder = _Encoder()
    encoder.add(kernel, x, y)
    if len(encoder.views) == 1:
        x, y, _ = encoder.views[0]
        return encoder.expression, x, y
    x = torch.cat([view[0] for view in encoder.views], -1)
    return encoder.expression, x, torch.cat([view[1] for view in encoder.views], -1)


def build_tree(
    names: Sequence[str], counts: Sequence[int], views: Sequence[int], numbers: Sequence[float]
) -> Node:
    """Build the tree of a postfix expression."""
    return _build_tree(tuple(names), tuple(counts), tuple(views), tuple(numbers))


@lru_cache(maxsize=64)
def _build_tree(
    names: tuple[str, ...],
    counts: tuple[int, ...],
    views: tuple[int, ...],
    numbers: tuple[float, ...],
) -> Node:
    stack: list[Node] = []
    used = 0
    for name, count, view in zip(names, counts, views, strict=True):
        if view < 0:
            parts = tuple(stack[-count:])
            del stack[-count:]
            stack.append(Node(name, parts=parts))
        else:
            stack.append(Node(name, numbers[used : used + count], view))
            used += count
    (root,) = stack
    return root


def list_leaves(node: Node) -> list[Node]:
    """List the single kernels of a tree."""
    return [leaf for part in node.parts for leaf in list_leaves(part)] or [node]
