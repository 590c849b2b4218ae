"""How a kernel function and its numbers are handed to a Triton kernel."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import triton

# pinned, because Triton's default is about to change and with it the bits of the results
LAUNCH_OPTIONS = {"enable_fp_fusion": True}


class Function(NamedTuple):
    """The arguments of ``kernel_and_slope`` in ``jit/common.py``."""

    KERNEL: str  # "gaussian" or "polynomial"
    parameters: tuple[float, ...]
    ORDER: int


def encode(name: str, parameters: Sequence[float]) -> Function:
    """From the op's name and numbers: "gaussian_mean", "gaussian" or "polynomial"."""
    if name == "polynomial":
        degree, gamma, coef0 = parameters
        return Function("polynomial", (float(gamma), float(coef0)), int(degree))
    scales = sorted(map(float, parameters), reverse=True)
    if all(wide == 2 * narrow for wide, narrow in pairwise(scales)):
        return Function("gaussian", (1 / scales[0],), len(scales))
    return Function("gaussian", tuple(1 / scale for scale in scales), 1)


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels: their INTERPRET."""
    return bool(triton.knobs.runtime.interpret)
