"""Fixtures for tests of the kernels: truth, devices, samples, poisoned memory."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

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
