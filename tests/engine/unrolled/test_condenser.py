"""Condensation through training: resumes bit for bit, descends, replaces its networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.bench_condense import generate_images
from m3d_fast import CondenseConfig, condense
from m3d_fast.common.errors import UserError
from m3d_fast.common.tensors import read_tensors
from m3d_fast.config import ResolvedConfig
from m3d_fast.engine.sources.registry import network_state_bytes
from m3d_fast.engine.unrolled.condenser import NOT_DRAWN, UnrolledCondenser
from m3d_fast.engine.unrolled.training import Batch, Trained
from m3d_fast.methods.bptt import BPTT
from m3d_fast.run.checkpoint import CHECKPOINT_FORMAT, NETWORKS
from tests.helpers.condensers import digits_settings, open_digits

SHORT = {"window": 2, "between": 1, "horizon": 7, "batch": 8}


def resolve(options: dict[str, Any] | None = None, **given: Any) -> ResolvedConfig:
    fixed = {"method": "bptt", "real_batch": 2, "pool": 2, "options": SHORT | (options or {})}
    return digits_settings(**(fixed | given))


def build(**given: Any) -> UnrolledCondenser:
    config = resolve(**given)
    return UnrolledCondenser(config, open_digits(config))


class Killed(Exception):
    pass


def test_a_killed_run_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(run: str) -> CondenseConfig:
        given = {"method": "bptt", "options": SHORT, "pool": 2, "real_batch": 2, "iterations": 7}
        given |= {"dataset": "digits", "device": "cpu", "precision": "fp32", "compile": False}
        given |= {"log_every": 2, "checkpoint_every": 2, "out": str(tmp_path / run)}
        return CondenseConfig(**given)

    condense(settings("straight"))
    step = UnrolledCondenser.step

    def die(condenser: UnrolledCondenser, iteration: int, **named: Any):
        if iteration == 5:
            raise Killed
        return step(condenser, iteration, **named)

    with monkeypatch.context() as patch:
        patch.setattr(UnrolledCondenser, "step", die)
        with pytest.raises(Killed):
            condense(settings("killed"))
    condense(CondenseConfig(out=str(tmp_path / "killed")), resume=True)
    for name in ("synthetic.safetensors", "checkpoint.safetensors"):
        straight, killed = ((tmp_path / run / name).read_bytes() for run in ("straight", "killed"))
        assert killed == straight
    state = read_tensors(tmp_path / "straight/checkpoint.safetensors", CHECKPOINT_FORMAT)[0]
    steps = state[f"{NETWORKS}steps"].tolist()
    assert len(steps) == 2
    # 7 iterations of 3 steps are more than 7 for either, so that one at least was drawn anew
    assert all(0 <= count <= 7 for count in steps)


@pytest.mark.parametrize("decode", ["tiles", "basis"])
def test_a_step_along_the_gradient_lowers_the_loss_of_its_window(decode: str) -> None:
    given = {"decode": decode, "ipc": 2 if decode == "basis" else 1}
    condenser = build(options={"batch": 64}, real_batch=10, augment="none", **given)
    real, network = condenser._next_real(), condenser._take_to_its_place(1)

    def unroll() -> tuple[Tensor, float]:
        _, gradient, losses = condenser._unroll(network, real, 0)
        return gradient, float(losses.mean())

    gradient, before = unroll()
    assert gradient.abs().sum() > 0
    condenser.pixels.sub_(0.3 * gradient / gradient.norm()).clamp_(0, 1)
    assert unroll()[1] < before


def test_networks_are_spread_over_the_training_and_replaced_at_its_end() -> None:
    condenser = build(options={"horizon": 8}, pool=4)
    assert [condenser._take_to_its_place(number).steps for number in range(4)] == [0, 2, 4, 6]
    started, replaced = set(), 0
    for iteration in range(40):
        before = list(condenser._networks)
        condenser.step(iteration)
        (chosen,) = (i for i in range(4) if condenser._networks[i] is not before[i])
        steps = condenser._networks[chosen].steps
        if chosen not in started:
            assert before[chosen].steps == NOT_DRAWN
            # the last one's window ends at the horizon
            assert steps == [3, 5, 7, 0][chosen]
            started.add(chosen)
            continue
        replaced += steps == 0
        assert steps in (0, before[chosen].steps + 3)
        assert steps <= 8
    assert started == {0, 1, 2, 3}
    assert replaced > 1


def test_a_gradient_much_longer_than_those_before_is_scaled_down() -> None:
    condenser = build()
    one = torch.zeros_like(condenser.pixels)
    one[0, 0, 0, 0, 0] = 1.0
    assert torch.equal(condenser._clip(5 * one), 5 * one), "the first has none before it"
    assert torch.equal(condenser._clip(7 * one), 7 * one)
    long = condenser._clip(1000 * one).norm()
    assert 10 < long < 11, "twice the root mean square of 5 and, a little, 7"


def test_the_disk_that_a_run_needs_is_that_of_its_networks() -> None:
    condenser = build(pool=3)
    state = condenser.state()
    names = [f"{NETWORKS}{name}" for name in ("weights", "momentum", "average")]
    expected = sum(state[name].numel() * 4 for name in names)
    assert network_state_bytes(condenser.config, condenser.real) == expected


def test_a_measurement_changes_nothing() -> None:
    condenser = build()
    before = {name: tensor.clone() for name, tensor in condenser.state().items()}
    assert condenser.seconds_per_iteration() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in condenser.state().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"window": 0}}, "window: expected a number above 0, got 0"),
        ({"options": {"between": -1}}, "between: expected a whole number >= 0, got -1"),
        ({"options": {"horizon": 1}}, "horizon: expected at least the 2 steps of a window, got 1"),
        ({"options": {"weight_average": 1}}, "weight_average: expected a number from 0 to below 1"),
        ({"add": {"ridge": 1.0}}, "add: bptt has no loss that terms could be added to"),
        ({"preset": "strong"}, "preset: strong and m3d are of methods that read networks"),
        ({"networks_from": "pool"}, "networks_from: bptt trains its networks on the synthetic"),
    ],
)
def test_bad_input_is_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(**given)
    assert "\n" not in str(caught.value)


def test_more_images_per_class_have_longer_trainings_and_smaller_steps() -> None:
    def settings(ipc: int) -> tuple[float, ...]:
        given = {"dataset": "fashionmnist", "method": "bptt", "device": "cpu"}
        config = CondenseConfig(**given, ipc=ipc).resolve()
        method = config.build_method()
        assert isinstance(method, BPTT)
        assert config.lr_schedule == "cosine"
        return config.pool, method.horizon, config.lr_img

    assert settings(1) == (8, 600, 0.003)
    assert settings(9) == pytest.approx((4, 1600, 0.001))


def test_it_takes_one_process() -> None:
    with pytest.raises(UserError, match="trains its networks on the whole synthetic set"):
        resolve().check_ranks(2)


@pytest.mark.gpu
def test_on_a_gpu_a_step_is_that_of_the_cpu_and_waits_for_nothing() -> None:
    condensers = []
    for device in ("cpu", "cuda"):
        config = resolve({"horizon": 40}, device=device, augment="none", compile=False)
        real = generate_images(10, 20, 1, 16, device=device)
        condensers.append(UnrolledCondenser(config, real))
    network = condensers[0]._draw(0)
    real = condensers[0]._next_real()
    labels = torch.arange(10).repeat_interleave(2)
    ends = []
    for condenser in condensers:
        training, device = condenser._training, condenser.device
        batch = Batch(
            real[:, 0].float().to(device) / 255,
            torch.arange(10, device=device),
            torch.arange(10, device=device),
            torch.ones((), device=device),
        )
        before = Trained(*(part.to(device) for part in network[:3]), 0)
        after = training.take(before, batch)
        images = real.flatten(0, 1).to(device)
        of_weights, _ = training.classify(after.average, images, labels.to(device))
        ends.append(training.differentiate([before], [batch], of_weights)[0].cpu())
    assert (ends[1] - ends[0]).norm() < 1e-2 * ends[0].norm()
    steps = 0
    while any(network.steps == NOT_DRAWN for network in condensers[1]._networks):
        condensers[1].step(steps)  # which copies what it draws
        steps += 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        condensers[1].step(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
