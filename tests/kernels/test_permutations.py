"""How the permutation test draws: on the CPU one by one, on a GPU all at once."""

import pytest
import torch

from m3d_fast.kernels import permutation_test
from m3d_fast.kernels.two_sample import permutation as two_sample


def test_rows_chosen_at_once_are_as_many_and_as_likely_everywhere(generator):
    """Shares of 4,000 draws, each bound at five deviations."""
    members = torch.zeros(4000, 12, dtype=torch.bool)
    two_sample._choose_rows(members, 5, generator)
    assert (members.sum(1) == 5).all()
    assert ((members.double().mean(0) - 5 / 12).abs() < 5 * (5 / 12 * 7 / 12 / 4000) ** 0.5).all()
    # and pairs of rows: 5/12 * 4/11 of the draws hold both
    share = 5 / 12 * 4 / 11
    both = (members.double().T @ members.double() / 4000).masked_fill(
        torch.eye(12, dtype=torch.bool), share
    )
    assert ((both - share).abs() < 5 * (share * (1 - share) / 4000) ** 0.5).all()


def test_one_seed_chooses_one_set_of_rows():
    first, second = torch.zeros(2, 30, 40, dtype=torch.bool)
    for members in (first, second):
        two_sample._choose_rows(members, 17, torch.Generator().manual_seed(3))
    assert torch.equal(first, second)


@pytest.mark.parametrize("keys", [1, 100, 2**24])
def test_a_gpu_draws_in_parts_without_a_loop_over_permutations(keys, monkeypatch):
    """The meta device stands for a GPU: it has shapes and no elements."""
    parts = []
    monkeypatch.setattr(two_sample, "SORTED_KEYS", keys)
    monkeypatch.setattr(torch, "randperm", None)
    monkeypatch.setattr(
        two_sample, "_choose_rows", lambda members, n, generator: parts.append(members.shape)
    )
    members = two_sample.draw_members(30, 10, 7, torch.device("meta"), None)
    assert members.shape == (8, 40)
    assert sum(rows for rows, _ in parts) == 7
    assert max(rows for rows, _ in parts) == min(7, max(1, keys // 40))


def test_a_generator_on_the_cpu_draws_there_whatever_the_device_of_the_samples():
    generator = torch.Generator().manual_seed(1)
    members = two_sample.draw_members(6, 5, 4, torch.device("meta"), generator)
    generator.manual_seed(1)
    orders = [torch.randperm(11, generator=generator)[:6] for _ in range(4)]
    for row, order in zip(members[1:], orders, strict=True):
        assert row.nonzero().flatten().tolist() == sorted(order.tolist())
    assert members[0].tolist() == [True] * 6 + [False] * 5


@pytest.mark.gpu
def test_a_gpu_draws_by_itself_and_gives_the_result_of_its_seed():
    x, y = torch.randn(2, 200, 5, device="cuda")
    first, second = (
        permutation_test(
            x, y, permutations=50, generator=torch.Generator("cuda").manual_seed(1)
        ).null
        for _ in range(2)
    )
    assert torch.equal(first, second)
