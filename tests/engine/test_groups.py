"""Classes that a method compares with each other are stepped in whole groups, the same anywhere."""

import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.config import CondenseConfig
from m3d_fast.distributed import Ranks
from m3d_fast.engine.chunking import find_largest_chunk, split_evenly
from tests.helpers.condensers import digits_condenser, digits_settings, run_steps

GROUPS = {"add": {"ridge": 1.0}, "group": 5, "real_batch": 6, "compile": False, "lr_img": 5.0}


def test_chunks_hold_whole_groups_and_change_nothing_but_rounding() -> None:
    whole, losses = run_steps(digits_settings(class_chunk=10, **GROUPS), 3)
    parts, chunked = run_steps(digits_settings(class_chunk=1, **GROUPS), 3)
    assert whole.chunks == [range(10)]
    assert parts.chunks == [range(5), range(5, 10)]
    torch.testing.assert_close(torch.stack(chunked), torch.stack(losses), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(parts.pixels, whole.pixels, atol=2e-4, rtol=0)


def test_a_rank_with_whole_groups_takes_the_steps_of_all() -> None:
    config = digits_settings(class_chunk=5, **GROUPS)
    whole, share = digits_condenser(config), digits_condenser(config, classes=range(5, 10))
    for iteration in range(2):
        whole.step(iteration)
        share.step(iteration)
    assert torch.equal(share.pixels, whole.pixels[5:])


def test_a_class_depends_on_its_group_alone() -> None:
    one, other = (digits_condenser(digits_settings(**GROUPS)) for _ in range(2))
    with torch.no_grad():
        other.pixels[0] = 1 - other.pixels[0]
    one.step(0)
    other.step(0)
    torch.testing.assert_close(one.pixels[5:], other.pixels[5:])
    assert (one.pixels[1:5] - other.pixels[1:5]).abs().amax() > 1e-3


@pytest.mark.parametrize(
    ("classes", "group", "size"),
    [(10, 20, 10), (100, 20, 20), (1000, 20, 20), (200, 30, 25), (33, 20, 11), (37, 40, 37)],
)
def test_groups_are_equal(classes: int, group: int, size: int) -> None:
    config = digits_settings(add={"ridge": 1.0}, group=group)
    assert config.count_in_group(classes) == size
    assert digits_settings(group=group).count_in_group(classes) == 1


def test_a_group_of_a_joint_method_has_all_classes() -> None:
    config = digits_settings(method="cafe", add={"ridge": 1.0}, group=5)
    assert config.count_in_group(10) == 10


def test_classes_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(UserError, match=r"37 classes cannot .* groups of 2 to 20; give --group 37"):
        digits_settings(add={"ridge": 1.0}).count_in_group(37)


@pytest.mark.parametrize(("size", "shares"), [(1, [100]), (2, [40, 60]), (5, [20] * 5)])
def test_ranks_share_whole_groups(size: int, shares: list[int]) -> None:
    ranges = [Ranks(rank, size).select_classes(100, 20) for rank in range(size)]
    assert [len(classes) for classes in ranges] == shares
    assert [c for classes in ranges for c in classes] == list(range(100))


def test_more_ranks_than_groups_are_refused() -> None:
    with pytest.raises(UserError, match=r"6 processes .* at most one per group of 20"):
        Ranks(0, 6).select_classes(100, 20)


def test_a_thousand_classes_are_stepped_within_the_memory_of_some_groups() -> None:
    """10 bytes a class, 1,000 free: 85 classes would fit, 80 in groups of 20."""
    chunk = find_largest_chunk(lambda classes: 10 * classes, 1000, 1000, 20)
    assert chunk == 80
    rows = split_evenly(1000, chunk, 20)
    assert {(r.stop - r.start) % 20 for r in rows} == {0}
    assert max(r.stop - r.start for r in rows) <= chunk


def test_a_group_that_does_not_fit_says_what_to_lower() -> None:
    def peak(classes: int) -> int:
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match=r"a group of 20 classes does not fit .* lower --group"):
        find_largest_chunk(peak, 100, 1000, 20)


@pytest.mark.parametrize(("draws", "same"), [("all", True), ("class", False)])
def test_one_draw_for_all_classes_or_one_for_each(draws: str, same: bool) -> None:
    condenser = digits_condenser(digits_settings(draws=draws))
    condenser.step(0)
    used = condenser._buffers.draws
    assert bool((used == used[:1]).all()) is same


def test_a_draw_for_each_would_tell_compared_classes_apart() -> None:
    assert digits_settings().draws == "class"
    assert digits_settings(add={"ridge": 1.0}).draws == "all"
    with pytest.raises(UserError, match="draws: m3d with its terms compares classes"):
        CondenseConfig(dataset="digits", add={"ridge": 1.0}, draws="class").resolve()
