"""A pool is trained once, shared, resumable; its networks are mixtures or stages; experts."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from m3d_fast.common.errors import UserError
from m3d_fast.common.signals import Interrupted
from m3d_fast.config import ResolvedConfig
from m3d_fast.engine.sources import pool_training
from m3d_fast.engine.sources.pool_file import open_pool
from m3d_fast.engine.sources.pool_training import PoolTraining
from m3d_fast.methods import Method, Network, Reading
from m3d_fast.methods.protocol import total
from m3d_fast.synthetic import decode
from tests.helpers.condensers import digits_condenser, digits_settings, open_digits

STEPS = 9  # of each network: 0.05 epochs of 1,438 images in batches of 8


def settings(**given) -> ResolvedConfig:
    fixed = {"networks_from": "pool", "pool": 2, "pool_epochs": 0.05, "pool_stages": 3, "ipm": 1}
    return digits_settings(**({"real_batch": 4} | fixed | given))


def pool_of(config: ResolvedConfig) -> Tensor:
    return open_pool(config, open_digits(config)).weights


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the pools that are trained."""
    run, names = PoolTraining.run, []

    def count(self) -> None:
        names.append(self._path.name)
        run(self)

    monkeypatch.setattr(PoolTraining, "run", count)
    return names


def test_runs_at_the_same_time_train_it_once_and_later_ones_not_at_all(trainings, cache) -> None:
    pools: list[Tensor] = []
    threads = [threading.Thread(target=lambda: pools.append(pool_of(settings()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trainings) == 1
    assert torch.equal(*pools)
    assert pools[0].shape[:2] == (2, 4)
    assert torch.equal(pool_of(settings(real_batch=5, iterations=7)), pools[0])
    assert len(trainings) == 1
    (path,) = (cache / "pools").glob("*.safetensors")
    assert path.name.startswith("digits-16px-convnet3-")
    with safe_open(path, framework="pt") as file:
        kept = json.loads(file.metadata()["pool"])
        assert float(file.metadata()["seconds"]) > 0
    assert (kept["networks"], kept["epochs"], kept["stages"]) == (2, 0.05, 3)


def test_another_seed_or_option_is_another_pool(trainings) -> None:
    first = pool_of(settings(pool=1))
    other = pool_of(settings(pool=1, seed=1))
    assert not torch.equal(first[0, 0], other[0, 0])
    shorter = pool_of(settings(pool=1, pool_epochs=0.01))
    assert torch.equal(shorter[0, 0], first[0, 0]), "as drawn"
    assert len(set(trainings)) == 3


def test_a_stopped_training_continues_to_the_same_weights(monkeypatch, tmp_path) -> None:
    straight = pool_of(settings()).clone()
    monkeypatch.setenv("M3D_FAST_CACHE", str(tmp_path / "other"))
    taken = 0

    class Stopped:
        def __enter__(self):
            return lambda: taken == STEPS + 4  # amid the second network

        def __exit__(self, *error) -> None:
            return None

    take = pool_training.NetworkTraining.take

    def count(*arguments) -> None:
        nonlocal taken
        taken += 1
        take(*arguments)

    monkeypatch.setattr(pool_training.NetworkTraining, "take", count)
    monkeypatch.setattr(pool_training, "stop_signals", lambda **_: Stopped())
    with pytest.raises(Interrupted, match="13 of 18 steps are kept; the same command continues"):
        pool_of(settings())
    (partial,) = (tmp_path / "other/pools").glob("*.partial.safetensors")
    assert torch.equal(pool_of(settings()), straight)
    assert taken == 2 * STEPS, "no step twice"
    assert not partial.exists()


@pytest.mark.parametrize("name", ["pool", "partial"])
def test_a_damaged_file_is_one_sentence(name: str, cache: Path) -> None:
    config = settings(pool=1, pool_epochs=0.01)
    pool_of(config)
    (path,) = (cache / "pools").glob("*.safetensors")
    whole = path.read_bytes()
    if name == "partial":
        path.rename(path := path.with_suffix(".partial.safetensors"))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"found a damaged or foreign file .*; remove it") as raised:
        pool_of(config)
    assert str(path) in str(raised.value)


def test_a_cache_that_cannot_be_written_is_one_sentence(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("M3D_FAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written or locked .*set M3D_FAST_CACHE"):
        pool_of(settings())


def weights_of(condenser, iteration: int) -> Tensor:
    condenser._source.load(iteration)
    return torch.cat([p.flatten() for p in condenser.embedder.network.parameters()])


def test_networks_are_stages_of_the_pool_whatever_came_before() -> None:
    config = settings()
    pool, condenser = pool_of(config)[:, 1:].flatten(0, 1), digits_condenser(config)
    seen = set()
    for iteration in range(40):
        weights = weights_of(condenser, iteration)
        seen |= {i for i, known in enumerate(pool) if torch.equal(known, weights)}
    assert seen == set(range(6)), "every network at every stage, never as drawn"
    assert torch.equal(weights_of(digits_condenser(config), 39), weights)
    assert condenser.pretraining_seconds > 0


def test_networks_are_mixtures_of_drawn_and_trained_as_published() -> None:
    config = settings(pool=1, pool_stages=0)
    ((drawn, trained),), condenser = pool_of(config), digits_condenser(config)
    shares = []
    for iteration in range(30):
        weights = weights_of(condenser, iteration)
        share = float((weights - trained) @ (drawn - trained) / (drawn - trained).square().sum())
        torch.testing.assert_close(weights, torch.lerp(trained, drawn, share), atol=1e-5, rtol=0)
        shares.append(share)
    assert 0 <= min(shares) < 0.2
    assert 0.8 < max(shares) <= 1
    assert weights_of(condenser, 31).allclose(weights_of(digits_condenser(config), 31))


@dataclass(frozen=True)
class ReadsExperts(Method):
    """The mean square of the expert's logits."""

    experts: ClassVar[bool] = True
    networks_from: ClassVar[str] = "pool"

    def probe(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        logits = network.expert.classify(network.expert.embed(images))
        return Reading((network.embed(images), logits))

    def losses(self, real: Reading, synthetic: Reading, value: bool):
        return total([part.square().mean((1, 2)) for part in synthetic.each[1:]])


@pytest.mark.filterwarnings("default")  # dynamo looks at .grad of tensors that have none
@pytest.mark.parametrize("compile", [False, True])
def test_probes_read_the_expert_of_the_iteration(monkeypatch, compile: bool) -> None:
    real_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: real_compile(f, backend="eager", **o))
    config = settings(method=f"{__name__}:ReadsExperts", augment="none", compile=compile)
    condenser, pool = digits_condenser(config), pool_of(config)
    addresses = [p.data_ptr() for p in condenser.embedder.expert.parameters()]
    for iteration in range(2):
        pixels = condenser.pixels.clone()
        losses = condenser.step(iteration).losses
        expert = torch.cat([p.flatten() for p in condenser.embedder.expert.parameters()])
        assert any(torch.equal(expert, weights) for weights in pool[:, -1])
        images = condenser.embedder.normalise(decode(pixels, config.factor))
        logits = condenser.embedder.expert(images.flatten(0, 1)).view(10, 4, 10)
        torch.testing.assert_close(losses[:, 0], logits.square().mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert [p.data_ptr() for p in condenser.embedder.expert.parameters()] == addresses
