import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import Gaussian, Linear, Polynomial, gram, mmd2
from tests.helpers.mmd_truth import gram_by_definition


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 4, 5, generator=generator, dtype=torch.float64) + 0.3


KERNELS = [
    Gaussian(),
    Gaussian(bandwidth=3.0, scales=(1, 2)),
    Gaussian(sigma=torch.tensor([1.0, 2.0]), scales=(1,)),
    Polynomial(),
    Linear(),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_matrix_and_gradient(kernel, pair):
    x, y = (side.requires_grad_() for side in pair)
    ours, expected = gram(x, y, kernel), gram_by_definition(x, y, kernel)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    gradients = torch.autograd.grad((ours * weights).sum(), (x, y))
    exact = torch.autograd.grad((expected * weights).sum(), (x, y))
    torch.testing.assert_close(gradients, exact, rtol=1e-11, atol=1e-12)


def test_second_derivative(pair):
    x, y = pair
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a: gram(a, y, Gaussian(bandwidth=4.0)), (x,))


def test_blocks_make_up_mmd2(pair):
    x, y = pair
    kernel = Gaussian(gamma=0.2)
    within = gram(x, x, kernel).mean((-2, -1)) + gram(y, y, kernel).mean((-2, -1))
    expected = within - 2 * gram(x, y, kernel).mean((-2, -1))
    torch.testing.assert_close(mmd2(x, y, kernel), expected, rtol=1e-12, atol=1e-13)


def test_single_precision_far_from_the_origin(generator):
    x = torch.randn(60, 32, generator=generator) + 1000
    y = torch.randn(30, 32, generator=generator) + 1000
    exact = gram_by_definition(x, y, Gaussian())
    torch.testing.assert_close(gram(x, y, Gaussian()).double(), exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(dtype, pair):
    x, y = (side.to(dtype) for side in pair)
    ours = gram(x, y, Gaussian())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours.double(), gram_by_definition(x, y, Gaussian()), rtol=0, atol=5e-6
    )


def test_autocast_does_not_lower_it(pair):
    x, y = (side.float() for side in pair)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gram(x, y, Polynomial())
    torch.testing.assert_close(ours, gram(x, y, Polynomial()), rtol=0, atol=0)


def test_all_points_equal_give_k_of_zero():
    x = torch.full((3, 4), 0.1)
    assert gram(x, x[:2], Gaussian()).unique().tolist() == [5.0]


def test_a_bad_bandwidth_tensor_gives_nan(pair):
    ours = gram(*pair, Gaussian(bandwidth=torch.tensor([1.0, -1.0])))
    assert ours[0].isfinite().all()
    assert ours[1].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3, 2), torch.ones(3, 4), Linear()), ValueError, r"x, y: expected .*\(3, 4\)"),
        ((torch.ones(3, 2), torch.ones(3, 2), Linear), TypeError, "kernel: expected Gaussian"),
        (
            (torch.ones(3, 2), torch.ones(3, 2), Gaussian(bandwidth=torch.ones(2))),
            ValueError,
            r"bandwidth: expected shape \(\) or \(\), got \(2,\)",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        gram(*arguments)
