"""The permute family: many permutations of the same rows, each against the definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import Gaussian, Kernel, Polynomial
from m3d_fast.kernels.arguments import OpArguments
from m3d_fast.kernels.triton import dispatch, permute


def draw_members(count: int, n: int, m: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(count, n + m, generator=generator).argsort(-1)
    return order < n


@pytest.fixture
def permuted_mmd2(triton_device: torch.device) -> Callable[..., Tensor]:
    def run(
        x: Tensor, y: Tensor, members: Tensor, kernel: Kernel, estimator: str, precision: str
    ) -> Tensor:
        encoded = kernel.encode(x.shape[-1])
        moved = (tensor.to(triton_device) for tensor in (x, y, members))
        unbiased = estimator == "unbiased"
        x, y, members = moved
        arguments = OpArguments(
            x, y, None, None, None, encoded.name, encoded.parameters, unbiased, precision
        )
        return dispatch.permuted_mmd2_cuda(members, arguments)

    return run


def compute_exactly(z: Tensor, members: Tensor, kernel: Kernel, estimator: str, truth) -> Tensor:
    first = torch.stack([z[rows] for rows in members])
    second = torch.stack([z[~rows] for rows in members])
    return truth.exact(first, second, kernel, estimator).value


@pytest.mark.parametrize("programs", [1, 3, 1000])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
@pytest.mark.parametrize("shape", [(90, 61, 20, 70), (5, 3, 40, 1), (130, 64, 7, 5)], ids=str)
def test_every_permutation(
    shape, kernel, estimator, programs, generator, truth, permuted_mmd2, monkeypatch
):
    """With all tiles in one program, a few in each, or one in each."""
    monkeypatch.setattr(permute, "PROGRAMS", programs)
    n, m, d, count = shape
    z = torch.randn(n + m, d, generator=generator).relu()
    members = draw_members(count, n, m, generator)
    ours = permuted_mmd2(z[:n], z[n:], members, kernel, estimator, "highest")
    exact = compute_exactly(z, members, kernel, estimator, truth)
    truth.assert_value(ours, exact, within=5e-6 * truth.size_of(kernel, exact))


@pytest.mark.parametrize("sizes", [(120, 2), (2, 120)], ids=str)
def test_samples_of_different_size_keep_their_digits(sizes, generator, truth, permuted_mmd2):
    """The sum within the larger sample cancels: only its own many pairs may divide it."""
    n, m = sizes
    z = torch.randn(n + m, 3, generator=generator)
    members = draw_members(2, n, m, generator)
    exact = compute_exactly(z, members, Gaussian(), "biased", truth)
    ours = permuted_mmd2(z[:n], z[n:], members, Gaussian(), "biased", "highest")
    assert truth.relative_error(ours, exact) < 1e-6


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_lower_precisions(precision, generator, truth, permuted_mmd2):
    z = torch.randn(100, 40, generator=generator).relu()
    members = draw_members(9, 60, 40, generator)
    ours = permuted_mmd2(z[:60], z[60:], members, Gaussian(), "biased", precision)
    exact = compute_exactly(z, members, Gaussian(), "biased", truth)
    truth.assert_value(ours, exact, within=5e-4 if precision == "medium" else 5e-6)


def test_wide_bandwidth_keeps_its_digits(generator, truth, permuted_mmd2):
    z = torch.nn.functional.normalize(torch.randn(70, 24, generator=generator), dim=-1)
    members = draw_members(4, 40, 30, generator)
    kernel = Gaussian(sigma=100.0, scales=(1.0,))
    exact = compute_exactly(z, members, kernel, "biased", truth)
    ours = permuted_mmd2(z[:40], z[40:], members, kernel, "biased", "highest")
    # three means of 1 - k, 1e-4 each with an error of a few units, differ by 9e-6: 5e-6 is seen
    truth.assert_value(ours, exact, within=3e-5 * exact.abs().max().item())


def test_bitwise_equal_from_run_to_run(generator, permuted_mmd2):
    z = torch.randn(150, 20, generator=generator)
    members = draw_members(6, 90, 60, generator)
    first, second = (
        permuted_mmd2(z[:90], z[90:], members, Gaussian(), "biased", "highest") for _ in range(2)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
