"""One call of the op as the launchers see it."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .encode import Function
from .families import Problem, products


class Samples(NamedTuple):
    """The two samples, with the batch dimensions made one."""

    x: Tensor  # (C, N, D), the last dimension contiguous
    y: Tensor  # (C, M, D)
    x_lengths: Tensor | None  # (C,), contiguous
    y_lengths: Tensor | None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """C, N, M, D."""
        return self.x.shape[0], self.x.shape[1], self.y.shape[1], self.x.shape[2]

    @property
    def lengths_given(self) -> dict[str, bool]:
        """Constexprs of every kernel that reads lengths."""
        return {
            "HAS_X_LENGTHS": self.x_lengths is not None,
            "HAS_Y_LENGTHS": self.y_lengths is not None,
        }


@dataclass(frozen=True, kw_only=True)
class Call:
    """Everything a family needs to know; each has ``run(call) -> Result``."""

    samples: Samples
    function: Function
    mean_bandwidth: bool  # the bandwidth is that of the stacked samples
    bandwidth: Tensor | None  # one number, or one per batch element, contiguous
    unbiased: bool
    problem: Problem
    architecture: int  # compute capability times ten

    @property
    def products(self) -> str:
        """PRECISION of the kernels."""
        return products(self.problem.precision, self.problem.columns)


class Result(NamedTuple):
    """(C,), (C, N, D) and (C, M, D), float32; None where not asked for."""

    value: Tensor | None
    grad_x: Tensor | None
    grad_y: Tensor | None
