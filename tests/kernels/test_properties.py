"""Properties of MMD on any data; hypothesis chooses sizes and values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m3d_fast.kernels import Gaussian, Linear, Polynomial, mmd2, mmd2_and_grad

EPS = 5e-6  # of k(0) = 5, as everywhere
SIZE = st.integers(1, 9)
STEP = 2.0**-10

settings.register_profile("kernels", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("kernels")


@st.composite
def samples(draw: st.DrawFn, min_rows: int = 1) -> tuple[Tensor, Tensor]:
    """Draw two samples on a grid: distances are exact in float32, and duplicates occur."""
    n, m = draw(st.integers(min_rows, 9)), draw(st.integers(min_rows, 9))
    d, spread = draw(SIZE), draw(st.sampled_from([1, 64, 4096]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    grid = torch.randint(-spread, spread + 1, (n + m, d), generator=random) * STEP
    return grid[:n], grid[n:]


@given(samples())
def test_biased_value_is_not_negative(pair):
    assert mmd2(*pair).item() >= -EPS


@given(samples())
def test_symmetry(pair):
    x, y = pair
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, wrt="both")
    swapped, (swapped_y, swapped_x) = mmd2_and_grad(y, x, wrt="both")
    torch.testing.assert_close(swapped, value, rtol=0, atol=EPS)
    scale = max(grad_x.norm().item(), grad_y.norm().item())
    torch.testing.assert_close(swapped_x, grad_x, rtol=0, atol=EPS * scale)
    torch.testing.assert_close(swapped_y, grad_y, rtol=0, atol=EPS * scale)


@given(samples(), st.sampled_from([-1024.0, 1024.0]))
def test_translation_changes_nothing(pair, shift):
    """The data are multiples of 2^-10 below 2^3, so that a shift by 2^10 is exact in float32."""
    x, y = pair
    value, gradient = mmd2_and_grad(x, y)
    moved, moved_gradient = mmd2_and_grad(x + shift, y + shift)
    torch.testing.assert_close(moved, value, rtol=0, atol=EPS)
    torch.testing.assert_close(moved_gradient, gradient, rtol=0, atol=EPS * gradient.norm().item())


@given(samples(), st.integers(-20, 20))
def test_the_mean_rule_makes_the_unit_of_length_irrelevant(pair, exponent):
    x, y = pair
    value, gradient = mmd2_and_grad(x, y)
    scaled, scaled_gradient = mmd2_and_grad(x * 2.0**exponent, y * 2.0**exponent)
    torch.testing.assert_close(scaled, value, rtol=0, atol=EPS)
    torch.testing.assert_close(
        scaled_gradient * 2.0**exponent, gradient, rtol=0, atol=EPS * gradient.norm().item()
    )


@given(samples(), st.integers(0, 2**31))
def test_order_of_rows_does_not_matter(pair, seed):
    x, y = pair
    random = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(len(side), generator=random) for side in pair)
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, wrt="both")
    shuffled, (other_x, other_y) = mmd2_and_grad(x[rows], y[columns], wrt="both")
    torch.testing.assert_close(shuffled, value, rtol=0, atol=EPS)
    scale = max(grad_x.norm().item(), grad_y.norm().item())
    torch.testing.assert_close(other_x, grad_x[rows], rtol=0, atol=EPS * scale)
    torch.testing.assert_close(other_y, grad_y[columns], rtol=0, atol=EPS * scale)


@given(samples())
def test_gradients_of_both_samples_cancel(pair):
    """Moving both samples together changes nothing, so that all gradients sum to zero."""
    _, (grad_x, grad_y) = mmd2_and_grad(*pair, wrt="both")
    scale = grad_x.abs().sum() + grad_y.abs().sum()
    assert (grad_x.sum(0) + grad_y.sum(0)).abs().max() <= 1e-6 * scale


@given(samples())
def test_a_sample_does_not_differ_from_itself(pair):
    x = torch.cat(pair)
    value, (grad_x, grad_y) = mmd2_and_grad(x, x.clone(), wrt="both")
    assert abs(value.item()) <= EPS
    # each of the two terms that cancel is at most 4 q |a - b| / (N^2 bandwidth), q <= 7.75
    spread = (x - x.mean(0)).norm(dim=-1)
    bound = 1e-5 / spread.max().clamp_min(STEP)
    assert grad_x.abs().max() <= bound
    assert grad_y.abs().max() <= bound


@given(samples(min_rows=2))
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial(), Linear()], ids=repr)
def test_unbiased_leaves_out_the_diagonals(kernel, pair):
    """Biased less unbiased is (mean k(x, x) - its mean over distinct rows) / N, and so for y."""
    x, y = (side.double() for side in pair)
    difference = mmd2(x, y, kernel) - mmd2(x, y, kernel, estimator="unbiased")
    expected = torch.zeros((), dtype=torch.float64)
    for side in (x, y):
        if isinstance(kernel, Gaussian):
            z = torch.cat([x, y])
            squared = (z[:, None] - z).square().sum(-1)
            bandwidth = squared.sum() / (len(z) * (len(z) - 1))
            own = (side[:, None] - side).square().sum(-1) / bandwidth.clamp_min(STEP**3)
            k = torch.stack([torch.exp(-own / s) for s in kernel.scales]).sum(0)
        else:
            k = side @ side.mT
            k = (k / side.shape[-1] + 1) ** 3 if isinstance(kernel, Polynomial) else k
        n = len(side)
        off_diagonal = (k.sum() - k.trace()) / (n * (n - 1))
        expected += (k.diagonal().mean() - off_diagonal) / n
    torch.testing.assert_close(difference, expected, rtol=1e-9, atol=1e-9)


@given(samples(), st.integers(1, 4))
def test_the_same_call_gives_the_same_bits(pair, copies):
    x, y = (side.expand(copies, *side.shape).contiguous() for side in pair)
    value, gradient = mmd2_and_grad(x, y)
    again, gradient_again = mmd2_and_grad(x, y)
    assert torch.equal(value, again)
    assert torch.equal(gradient, gradient_again)
