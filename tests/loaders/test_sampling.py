import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3d_fast.loaders import ClassSampler, DataError

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32)


@settings(deadline=None)
@given(sizes=SIZES, seed=SEEDS, cuts=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_every_pass_holds_each_image_once(sizes: list[int], seed: int, cuts: list[int]) -> None:
    sampler = ClassSampler(sizes, seed)
    everyone = range(len(sizes))
    drawn = np.concatenate([sampler.draw(everyone, cut) for cut in cuts], axis=1)
    for size, sequence in zip(sizes, drawn, strict=True):
        for start in range(0, len(sequence), size):
            piece = sequence[start : start + size]
            assert len(set(piece.tolist())) == len(piece)
            assert set(piece.tolist()) <= set(range(size))


@settings(deadline=None)
@given(sizes=SIZES, seed=SEEDS, before=st.integers(1, 40), after=st.integers(1, 40))
def test_resumed_equals_uninterrupted(sizes: list[int], seed: int, before: int, after: int) -> None:
    everyone = range(len(sizes))
    straight = ClassSampler(sizes, seed)
    straight.draw(everyone, before)
    resumed = ClassSampler(sizes, seed)
    resumed.load_state_dict(straight.state_dict())
    np.testing.assert_array_equal(resumed.draw(everyone, after), straight.draw(everyone, after))
    assert resumed.state_dict()["positions"].tolist() == [before + after] * len(sizes)


@settings(deadline=None)
@given(
    seed=SEEDS,
    draws=st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.integers(1, 9))),
)
def test_a_class_does_not_depend_on_the_others(
    seed: int, draws: list[tuple[list[int], int]]
) -> None:
    sizes = [4, 7, 1]
    mixed = ClassSampler(sizes, seed)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for classes, per_class in draws:
        for class_index, row in zip(classes, mixed.draw(classes, per_class), strict=True):
            seen[class_index].extend(row.tolist())
    for class_index, sequence in seen.items():
        if sequence:
            alone = ClassSampler(sizes, seed).draw([class_index], len(sequence))[0]
            assert sequence == alone.tolist()


def test_the_sequence_is_the_documented_one() -> None:
    expected = [np.random.default_rng([11, 1, visit]).permutation(5) for visit in range(3)]
    drawn = ClassSampler([3, 5], 11).draw([1], 15)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(drawn[0], np.concatenate(expected))


def test_seeds_give_different_orders() -> None:
    orders = {tuple(ClassSampler([50], seed).draw([0], 50)[0]) for seed in range(5)}
    assert len(orders) == 5


def test_a_refused_draw_draws_nothing() -> None:
    sampler = ClassSampler([3, 3], 0)
    with pytest.raises(DataError, match="class 2 does not exist: classes are 0 to 1"):
        sampler.draw([0, 2], 2)
    with pytest.raises(DataError, match="class -1 does not exist"):
        sampler.draw([-1], 2)
    with pytest.raises(DataError, match="at least one image per class must be drawn, got 0"):
        sampler.draw([0], 0)
    assert sampler.state_dict()["positions"].tolist() == [0, 0]


def test_the_state_is_a_copy() -> None:
    sampler = ClassSampler([3], 0)
    state = sampler.state_dict()
    sampler.draw([0], 2)
    assert state["positions"].tolist() == [0]
    other = ClassSampler([3], 0)
    other.load_state_dict(state)
    other.draw([0], 2)
    assert state["positions"].tolist() == [0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "a sampler's state has 'positions', got []"),
        ({"positions": np.zeros(3, np.int64)}, "integers of shape (2,), got int64 of shape (3,)"),
        ({"positions": np.zeros(2)}, "integers of shape (2,), got float64 of shape (2,)"),
        ({"positions": np.array([4, -1])}, "positions are 0 or more, got -1"),
    ],
)
def test_foreign_state_is_refused(state: dict[str, np.ndarray], message: str) -> None:
    sampler = ClassSampler([3, 3], 0)
    sampler.draw([0], 1)
    with pytest.raises(DataError, match=re.escape(message)):
        sampler.load_state_dict(state)
    assert sampler.state_dict()["positions"].tolist() == [1, 0]


def test_impossible_samplers_are_refused() -> None:
    with pytest.raises(DataError, match="class 1 has none"):
        ClassSampler([3, 0], 0)
    with pytest.raises(DataError, match="the seed must be 0 or more, got -1"):
        ClassSampler([3], -1)
