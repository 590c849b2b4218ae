"""How a kernel function and its numbers are handed to a Triton kernel."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import triton


class Function(NamedTuple):
    """The arguments of ``kernel_and_slope`` in ``_triton_common.py``."""

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


def common_options() -> dict[str, Any]:
    """Keyword arguments of every launch; fusion is pinned because its default is changing."""
    return {"INTERPRET": triton.knobs.runtime.interpret, "enable_fp_fusion": True}
