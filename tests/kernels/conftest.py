"""Fixtures for tests of the kernels: truth, devices, samples, poisoned memory, Triton families."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import Gaussian, Kernel
from m3d_fast.kernels.arguments import OpArguments
from tests.helpers.mmd_truth import Truth


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def two_samples(generator: torch.Generator) -> Callable[..., tuple[Tensor, Tensor]]:
    """Draw (C, N, D) and (C, M, D) like a network's features: not negative, many zeros."""

    def draw(classes: int = 2, n: int = 37, m: int = 11, d: int = 20) -> tuple[Tensor, Tensor]:
        x = torch.randn(classes, n, d, generator=generator).relu()
        return x, (torch.randn(classes, m, d, generator=generator) + 0.3).relu()

    return draw


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Unwritten memory holds NaN (torch fills it in deterministic mode)."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


GUARD = 4096  # elements of NaN on either side of what a kernel is given to write


class Guarded:
    """Hands out memory inside of larger, poisoned memory, and looks at the rest afterwards."""

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


def inside_nan(points: Tensor) -> Tensor:
    """The same numbers as a view of memory that is NaN wherever no kernel may look."""
    classes, rows, columns = points.shape
    memory = torch.full((classes, rows + 3, columns + 5), torch.nan, dtype=points.dtype)
    memory[:, 1:-2, :columns] = points
    return memory.to(points.device)[:, 1:-2, :columns]


@pytest.fixture
def triton_device() -> torch.device:
    """Where Triton runs: in the interpreter on the CPU, compiled (TRITON_INTERPRET=0) on a GPU."""
    from m3d_fast.kernels.triton.encode import interpreting

    return torch.device("cpu" if interpreting() else "cuda")


@pytest.fixture
def triton_op(
    monkeypatch: pytest.MonkeyPatch, triton_device: torch.device
) -> Iterator[Callable[..., Any]]:
    """The op by one family of Triton kernels.

    ``triton_op(family, x, y, kernel, wrt=, value=, estimator=, precision=, x_lengths=,
    y_lengths=)`` gives the value and both gradients, None where not asked for. ``family`` None
    leaves the choice to the table. All memory is poisoned, that around the samples too.
    """
    from m3d_fast.kernels.triton import dispatch

    guarded, choose = Guarded(), dispatch.choose
    for name, module in list(sys.modules.items()):
        if name.startswith("m3d_fast.kernels.triton.") and hasattr(module, "empty"):
            monkeypatch.setattr(module, "empty", guarded.empty)

    def run(
        family: str | None,
        x: Tensor,
        y: Tensor,
        kernel: Kernel | None = None,
        *,
        wrt: str = "both",
        value: bool = True,
        estimator: str = "biased",
        precision: str = "highest",
        **lengths: Tensor,
    ) -> tuple[Tensor | None, ...]:
        encoded = (kernel or Gaussian()).encode(x.shape[-1])
        moved = {name: given.to(triton_device) for name, given in lengths.items()}
        monkeypatch.setattr(dispatch, "choose", lambda problem: family or choose(problem))
        flags = (value, wrt in ("x", "both"), wrt in ("y", "both"))
        arguments = OpArguments(
            inside_nan(x.to(triton_device)),
            inside_nan(y.to(triton_device)),
            None if encoded.bandwidth is None else encoded.bandwidth.to(triton_device),
            moved.get("x_lengths"),
            moved.get("y_lengths"),
            encoded.name,
            encoded.parameters,
            estimator == "unbiased",
            precision,
            *flags,
        )
        results = dispatch.mmd2_cuda(arguments)
        return tuple(result if flag else None for result, flag in zip(results, flags, strict=True))

    yield run
    guarded.assert_untouched()
