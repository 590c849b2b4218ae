"""Networks whose accuracy on real images ends their loops, as in CAFE's public code."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m3d_fast.engine.condenser import Condenser
from m3d_fast.engine.sources import guided
from m3d_fast.engine.sources.guided import GuidedNetwork
from m3d_fast.engine.sources.training import LabelledRows, NetworkTraining
from tests.helpers.condensers import digits_condenser, digits_settings


@pytest.fixture
def condenser() -> Condenser:
    return digits_condenser(digits_settings(networks_from="synthetic", ipm=0, real_batch=4))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], float]], list[int]]:
    """Passes over the synthetic set after each of six steps, if accuracies were these."""

    def count(accuracy: Callable[[int, int], float]) -> list[int]:
        monkeypatch.setattr(GuidedNetwork, "_measure", lambda _, i, number: accuracy(i, number))
        taken = [0]
        monkeypatch.setattr(NetworkTraining, "take", lambda *_: taken.append(taken.pop() + 1))
        source = digits_condenser(
            digits_settings(networks_from="synthetic", ipm=0, real_batch=4)
        )._source
        counts = []
        for iteration in range(6):
            source.update(iteration)
            counts.append(taken.pop())
            taken.append(0)
        assert int(source.state()["number"]) == counts.count(0)
        return counts

    return count


def test_a_network_whose_accuracy_settles_is_replaced(passes) -> None:
    # the window of tests is 3: three accuracies within 0.04, then another network
    assert passes(lambda i, number: 0.5 + 0.015 * i if number == 0 else 0.1 * number) == [
        *(3, 3, 0),
        *(3, 3, 0),
    ]
    assert passes(lambda i, number: 0.1 * i if number == 0 else 0.1 * number) == [3] * 6


def test_a_network_trains_until_its_accuracy_moves(passes) -> None:
    moves = {0: 0.0, 1: 0.3, 2: 0.3, 3: 0.31, 4: 0.35, 5: 0.35}
    assert passes(lambda i, number: 0.1 * i if number == 0 else moves[number]) == [4] * 6
    most = [guided.MOST_PASSES] * 6
    assert passes(lambda i, number: 0.1 * i if number == 0 else 0.3) == most


def test_the_window_is_that_of_the_network_and_in_the_state(condenser: Condenser) -> None:
    source = condenser._source
    assert isinstance(source, GuidedNetwork)
    source.update(0)
    seen = source.state()["seen"]
    assert seen[0] == torch.tensor(source._seen[0])
    assert seen[1:].tolist() == [-1, -1]
    other = digits_condenser(condenser.config)._source
    other.load_state(source.state())
    assert (other._seen, other._number) == (source._seen, source._number)
    assert source.seconds_per_update() > 0


def test_queries_are_of_every_class_and_without_repetition() -> None:
    rows = LabelledRows(SimpleNamespace(class_sizes=(3, 9, 6))).draw_each(4, seed=0)
    assert sorted(rows[0]) == [0, 1, 2], "all of a small class"
    assert [len(set(drawn)) for drawn in rows] == [3, 4, 4]
    assert all(3 <= row < 12 for row in rows[1])
    assert all(12 <= row < 18 for row in rows[2])


def test_the_accuracy_is_the_networks_on_real_images(condenser, monkeypatch) -> None:
    some = range(5, 20)
    starts = [sum(condenser.real.class_sizes[:label]) for label in range(10)]
    rows = [np.array([start + index for index in some]) for start in starts]
    network, real = condenser._source._training.network, condenser.real
    shares = []
    for label in range(10):
        images = real.take(label, some)
        with torch.no_grad():
            logits = network(condenser.embedder.normalise(images))
        shares.append((logits.argmax(1) == label).double().mean())
    expected = float(torch.stack(shares).mean())
    with monkeypatch.context() as patch:
        patch.setattr(LabelledRows, "draw_each", lambda *_: rows)
        assert condenser._source._measure(0, 0) == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 0.5, "a random network"
    measured = {condenser._source._measure(i, number) for i in (0, 1) for number in (0, 1, 2)}
    assert len(measured) > 1, "other images each time"
