"""The permutation test against its definition, where the null holds and where it does not."""

import pytest
import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from m3d_fast.kernels import Gaussian, Kernel, Linear, Polynomial, mmd2, permutation_test
from m3d_fast.kernels.cpu import blocks
from tests.helpers.mmd_truth import gram_by_definition

KERNELS = [
    Gaussian(),
    Gaussian(sigma=2.0),
    Gaussian(bandwidth=torch.tensor(7.0)),
    Polynomial(),
    Linear(),
]


def draw_permutations(n: int, m: int, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n + m, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("rows", [8, 512], ids=["tiles", "one tile"])
def test_every_permutation_is_the_definition_of_it(
    kernel: Kernel, rows, generator, truth, monkeypatch
):
    monkeypatch.setattr(blocks, "TILE_ROWS", rows)
    n, m = 21, 13
    z = torch.randn(n + m, 6, generator=generator) + 2
    result = permutation_test(
        z[:n], z[n:], kernel, permutations=9, generator=torch.Generator().manual_seed(5)
    )
    orders = [torch.arange(n + m), *draw_permutations(n, m, 9, 5)]
    exact = torch.stack([truth.exact(z[o[:n]], z[o[n:]], kernel).value for o in orders])
    # MMD^2 is a difference of means of k, whose rounding is that of their size
    size = max(1.0, gram_by_definition(z, z, kernel).abs().mean().item())
    torch.testing.assert_close(result.statistic.double(), exact[0], rtol=0, atol=2e-6 * size)
    torch.testing.assert_close(result.null.double(), exact[1:], rtol=0, atol=2e-6 * size)
    assert result.p_value == (1 + int((exact[1:] >= exact[0]).sum())) / 10


def test_statistic_is_mmd2(generator):
    x, y = torch.randn(600, 5, generator=generator), torch.randn(700, 5, generator=generator)
    statistic, _, null = permutation_test(x, y, permutations=3)
    torch.testing.assert_close(statistic, mmd2(x, y), rtol=0, atol=1e-6)
    assert null.shape == (3,)


@pytest.mark.parametrize("rows", [(1500, 4), (4, 1500)], ids=str)
def test_statistic_is_mmd2_of_samples_that_differ_in_size(rows, generator):
    x, y = (torch.randn(n, 5, generator=generator) for n in rows)
    statistic, _, _ = permutation_test(x, y, permutations=3)
    torch.testing.assert_close(statistic, mmd2(x, y), rtol=2e-6, atol=0)


def test_p_values_are_uniform_where_the_null_holds():
    """Mean, spread and the small ones, of 300 tests, each bound at about four deviations."""
    generator = torch.Generator().manual_seed(3)
    p = torch.tensor(
        [
            permutation_test(
                torch.randn(20, 3, generator=generator),
                torch.randn(12, 3, generator=generator),
                permutations=79,
                generator=generator,
            ).p_value
            for _ in range(300)
        ]
    )
    assert abs(p.mean() - 0.5) < 4 * 0.29 / 300**0.5
    assert 0.25 < p.std() < 0.33
    for level in (0.05, 0.1, 0.5):
        share = (p <= level).double().mean()
        assert abs(share - level) < 4 * (level * (1 - level) / 300) ** 0.5


def test_shifted_samples_are_told_apart(generator):
    rejected = [
        permutation_test(
            torch.randn(60, 5, generator=generator),
            torch.randn(60, 5, generator=generator) + 0.5,
            permutations=99,
            generator=generator,
        ).p_value
        <= 0.05
        for _ in range(20)
    ]
    assert sum(rejected) >= 18


def test_equal_points_are_never_told_apart():
    x = torch.full((6, 4), 0.1)
    assert permutation_test(x, x[:3], permutations=20).p_value == 1


def test_equal_splits_tie_whatever_the_rounding():
    """Of 2 + 1 rows a third of all permutations split them as x and y do: these must tie."""
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.0, 1.0], [0.3, 1.1]])
    y = torch.tensor([[3.0, 5.0]])
    p = permutation_test(x, y, permutations=600, generator=generator).p_value
    assert 0.25 < p < 0.42


def test_one_seed_gives_one_result(generator):
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 4, generator=generator)
    first, second = (
        permutation_test(x, y, permutations=10, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first.null, second.null)


def test_memory_is_not_that_of_the_kernel_matrix(generator):
    """The kernel matrix of 6,000 rows would take 137 MB."""
    x, y = torch.randn(2, 3000, 5, generator=generator)
    assert peak_bytes(lambda: permutation_test(x, y, permutations=20)) < 8 * 2**20


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "permutations: expected at least 1", {"permutations": 0}),
        (TypeError, "permutations: expected an int", {"permutations": 10.0}),
        (ValueError, r"expected \(N, D\)", {"x": torch.ones(1, 3, 2), "y": torch.ones(1, 3, 2)}),
        (TypeError, "kernel: expected", {"kernel": Gaussian}),
        (ValueError, "bandwidth", {"kernel": Gaussian(bandwidth=torch.tensor(-1.0))}),
    ],
    ids=["none", "float", "batch", "kernel", "bandwidth"],
)
def test_invalid_input_is_refused(error, words, options):
    arguments = {"x": torch.ones(3, 2), "y": torch.ones(3, 2)} | options
    with pytest.raises(error, match=words):
        permutation_test(arguments.pop("x"), arguments.pop("y"), **arguments)
