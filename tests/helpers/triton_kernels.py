"""Poisoned memory, and kernel functions, for tests of Triton kernels."""

import torch
from torch import Tensor

from m3d_fast.kernels import Gaussian, Polynomial

GUARD = 4096  # elements of NaN on either side of memory that a kernel writes
BOTH_FORMS = [Gaussian(), Polynomial(2, gamma=0.1, coef0=0.5)]


class GuardedMemory:
    """Allocates memory between poisoned guards, and checks the guards afterwards."""

    def __init__(self) -> None:
        self.edges: list[Tensor] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        count = torch.Size(shape).numel()
        poison = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).min
        memory = torch.full((count + 2 * GUARD,), poison, dtype=dtype, device=device)
        self.edges += [memory[:GUARD], memory[-GUARD:]]
        return memory[GUARD : GUARD + count].view(shape)

    def assert_untouched(self) -> None:
        for edge in self.edges:
            whole = edge.isnan() if edge.is_floating_point() else edge == edge.min()
            assert whole.all(), "a kernel wrote beyond its memory"


def surround_with_nan(points: Tensor) -> Tensor:
    """Copy points into a view of memory that is NaN wherever no kernel may read."""
    classes, rows, columns = points.shape
    memory = torch.full((classes, rows + 3, columns + 5), torch.nan, dtype=points.dtype)
    memory[:, 1:-2, :columns] = points
    return memory.to(points.device)[:, 1:-2, :columns]
