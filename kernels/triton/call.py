"""One call of the op in the form that the launchers and their kernels take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import triton
from torch import Tensor

from .configs import Chip, Config, find_config
from .families import Problem, choose_input_precision


class KernelFunction(NamedTuple):
    """The arguments of ``kernel_and_slope`` in ``jit/common.py``."""

    KERNEL: str  # "gaussian" or "polynomial"
    parameters: tuple[float, ...]
    ORDER: int


def encode_kernel_function(name: str, parameters: Sequence[float]) -> KernelFunction:
    """Convert the op's ``kernel`` ("gaussian_mean", "gaussian", "polynomial") and parameters."""
    if name == "polynomial":
        degree, gamma, coef0 = parameters
        return KernelFunction("polynomial", (float(gamma), float(coef0)), int(degree))
    scales = sorted(map(float, parameters), reverse=True)
    if all(wide == 2 * narrow for wide, narrow in pairwise(scales)):
        return KernelFunction("gaussian", (1 / scales[0],), len(scales))
    return KernelFunction("gaussian", tuple(1 / scale for scale in scales), 1)


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels: their INTERPRET."""
    return bool(triton.knobs.runtime.interpret)


def replace_missing(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """Return ``stand_in`` for None: a kernel needs a pointer even to what it will not read."""
    return stand_in if tensor is None else tensor


class Samples(NamedTuple):
    """The two samples, their batch dimensions flattened to one."""

    x: Tensor  # (C, N, D), the last dimension contiguous
    y: Tensor  # (C, M, D)
    x_lengths: Tensor | None  # (C,), contiguous
    y_lengths: Tensor | None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """C, N, M, D."""
        return self.x.shape[0], self.x.shape[1], self.y.shape[1], self.x.shape[2]

    def bind_lengths(self, stand_in: Tensor) -> dict[str, Any]:
        """Arguments of a kernel that reads both lengths."""
        return {
            "x_lengths_ptr": replace_missing(self.x_lengths, stand_in),
            "y_lengths_ptr": replace_missing(self.y_lengths, stand_in),
            "HAS_X_LENGTHS": self.x_lengths is not None,
            "HAS_Y_LENGTHS": self.y_lengths is not None,
        }

    def bind_points(self) -> dict[str, Any]:
        """Arguments of a kernel that reads the points of both samples."""
        return {
            "x_ptr": self.x,
            "y_ptr": self.y,
            "x_class_stride": self.x.stride(0),
            "x_row_stride": self.x.stride(1),
            "y_class_stride": self.y.stride(0),
            "y_row_stride": self.y.stride(1),
        }


@dataclass(frozen=True, kw_only=True)
class Call:
    """Everything that a family needs to know; each family has ``run(call) -> Result``."""

    samples: Samples
    function: KernelFunction
    mean_bandwidth: bool  # the bandwidth is that of the stacked samples
    bandwidth: Tensor | None  # one number, or one per batch element, contiguous
    unbiased: bool
    problem: Problem
    chip: Chip

    @property
    def input_precision(self) -> str:
        """INPUT_PRECISION of the kernels."""
        return choose_input_precision(self.problem.precision, self.problem.columns)

    def find_config(self, table: Iterable[Config], kernel: Any, **rows: int) -> Config | None:
        """Find the tiles of a kernel for this precision and chip."""
        return find_config(table, kernel, self.input_precision, self.chip, **rows)

    def bind_chain(self, *, first: bool) -> dict[str, Any]:
        """Arguments and option of a kernel that starts before the one before it has ended.

        Chips of compute capability 9.0 and newer can (programmatic dependent launch). The ``first``
        launch of a call follows kernels that are not ours, and waits for them as usual.
        """
        overlaps = self.chip.generation >= 90 and not is_interpreted()
        return {"PDL": overlaps, **({"launch_pdl": True} if overlaps and not first else {})}

    def bind_function(self) -> dict[str, Any]:
        """Arguments of a kernel that computes the kernel function from products of points."""
        return {
            "parameters": self.function.parameters,
            "KERNEL": self.function.KERNEL,
            "ORDER": self.function.ORDER,
            "UNBIASED": self.unbiased,
            "INPUT_PRECISION": self.input_precision,
            "INTERPRET": is_interpreted(),
        }

    def bind_product(self) -> dict[str, Any]:
        """Arguments of a kernel that multiplies points but leaves the kernel function alone."""
        return {
            "KERNEL": self.function.KERNEL,
            "INPUT_PRECISION": self.input_precision,
            "INTERPRET": is_interpreted(),
        }

    def bind_bandwidth(self, stand_in: Tensor) -> dict[str, Any]:
        """Arguments of a kernel that computes the bandwidth."""
        bandwidth = self.bandwidth
        return {
            "bandwidth_ptr": replace_missing(bandwidth, stand_in),
            "bandwidth_step": int(bandwidth is not None and bandwidth.numel() > 1),
            "MEAN_BANDWIDTH": self.mean_bandwidth,
            "HAS_BANDWIDTH": bandwidth is not None,
        }
