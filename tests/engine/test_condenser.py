"""One step of the condenser against the published loop; seeds, state, methods; GPU promises."""

import contextlib
import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.published import loop_gradients
from benchmarks.bench_condense import generate_images
from m3d_fast.augment import UNIFORMS, augment, draw, parse_strategy
from m3d_fast.common.errors import UserError
from m3d_fast.common.seeds import generator
from m3d_fast.config import CondenseConfig, ResolvedConfig
from m3d_fast.engine import condenser as condenser_module
from m3d_fast.engine.condenser import Condenser
from m3d_fast.loaders import RealImages
from m3d_fast.methods.m3d import M3D
from m3d_fast.methods.protocol import Views
from m3d_fast.synthetic import decode
from tests.helpers.condensers import (
    copy_state,
    digits_condenser,
    digits_settings,
    open_digits,
    run_steps,
)


@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("network", ["convnet3", "resnetap10"])
def test_a_step_has_the_published_loops_losses_and_pixel_gradients(network: str, ipc: int) -> None:
    config = digits_settings(ipc=ipc, network=network, augment="flip_color_crop_rotate_cutout")
    condenser = digits_condenser(config)
    pixels = condenser.pixels.clone()
    losses = condenser.step(0).losses.sum(1)
    gradient = condenser.state()["momentum"]  # that of the first step

    twin, operations = open_digits(config), parse_strategy(config.augment)
    draws = draw(10, generator(config.seed, "augment", 0))
    normalise = condenser.embedder.normalise
    real = normalise(twin.batch(range(10), config.real_batch))

    def prepare_synthetic(c: int, leaf: Tensor) -> Tensor:
        images = normalise(decode(leaf, config.factor))
        return augment(images[None], draws[c : c + 1], operations)[0]

    expected_losses, expected = loop_gradients(
        condenser.embedder.network.embed,
        lambda c: augment(real[c : c + 1], draws[c : c + 1], operations)[0],
        prepare_synthetic,
        pixels,
    )
    torch.testing.assert_close(losses, expected_losses, atol=2e-5, rtol=1e-4)
    scale = expected.abs().amax()
    assert ((gradient - expected).abs().amax() / scale) < 2e-4
    moved = (pixels - config.lr_img * gradient).clamp(0, 1)
    torch.testing.assert_close(condenser.pixels, moved)


def test_momentum_gathers_the_steps_gradients() -> None:
    condenser = digits_condenser(digits_settings(lr_img=3.0))
    for iteration in range(3):
        before = copy_state(condenser)
        condenser.step(iteration)
        after = condenser.state()
        alone = digits_condenser(digits_settings(lr_img=3.0))
        alone.load_state(before | {"momentum": torch.zeros_like(before["momentum"])})
        alone.step(iteration)
        velocity = 0.5 * before["momentum"] + alone.state()["momentum"]
        torch.testing.assert_close(after["momentum"], velocity)
        moved = (before["pixels"] - 3.0 * after["momentum"]).clamp(0, 1)
        torch.testing.assert_close(after["pixels"], moved)
    assert (after["pixels"] == 0).any()


def test_a_class_does_not_depend_on_the_other_classes_pixels() -> None:
    config = digits_settings()
    one, other = digits_condenser(config), digits_condenser(config)
    with torch.no_grad():
        other.pixels[1:] = other.pixels[1:].flip(0)
    one.step(0)
    other.step(0)
    torch.testing.assert_close(one.pixels[0], other.pixels[0])
    assert (one.pixels[1] - other.pixels[1]).abs().max() > 0.1


def test_a_share_of_the_classes_takes_the_steps_of_all() -> None:
    config = digits_settings(class_chunk=2, real_batch=4)
    whole, share = digits_condenser(config), digits_condenser(config, classes=range(4, 8))
    for iteration in range(2):
        whole.step(iteration)
        share.step(iteration)
    assert torch.equal(share.pixels, whole.pixels[4:8])


def test_one_seed_gives_one_result_and_another_gives_another() -> None:
    first, second = run_steps(digits_settings(), 4)[0], run_steps(digits_settings(), 4)[0]
    assert torch.equal(first.pixels, second.pixels)
    assert not torch.equal(first.pixels, run_steps(digits_settings(seed=1), 4)[0].pixels)


def test_networks_last_ipm_iterations_and_augmentation_one() -> None:
    condenser = digits_condenser(digits_settings(ipm=2))
    weights = []
    for iteration in range(4):
        condenser.step(iteration)
        weights.append(condenser.embedder.network.blocks[0].weight.clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert torch.equal(weights[2], weights[3])


def test_state_restores_the_very_run() -> None:
    straight, losses = run_steps(digits_settings(), 7)
    first, _ = run_steps(digits_settings(), 3)
    saved = copy_state(first)
    resumed = digits_condenser()
    resumed.load_state(saved)
    again = [resumed.step(iteration).losses.sum(1) for iteration in range(3, 7)]
    assert torch.equal(resumed.pixels, straight.pixels)
    assert torch.equal(torch.stack(again), torch.stack(losses[3:]))


class DrawnAhead:
    """Images whose ``batches`` keeps one batch ready, as back ends that decode ahead do."""

    def __init__(self, real: RealImages) -> None:
        self._real, self._handed = real, real.state_dict()

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def state_dict(self):
        return self._handed

    def load_state_dict(self, state) -> None:
        self._real.load_state_dict(state)
        self._handed = copy.deepcopy(self._real.state_dict())

    @contextlib.contextmanager
    def batches(self, cycle, per_class):
        def ahead():
            drawn = (self._real.batch(classes, per_class).clone() for classes in endless)
            ready, state = next(drawn), copy.deepcopy(self._real.state_dict())
            while True:
                following = next(drawn)
                self._handed = state
                yield ready
                ready, state = following, copy.deepcopy(self._real.state_dict())

        endless = itertools.cycle(cycle)
        yield ahead()
        self._real.load_state_dict(self._handed)


def test_what_was_drawn_ahead_is_not_stepped_after_loading() -> None:
    config = digits_settings(class_chunk=5, real_batch=4)
    ahead = Condenser(config, DrawnAhead(open_digits(config)))
    plain = digits_condenser(config)
    start = copy_state(plain)
    for condenser in (ahead, plain):
        condenser.step(0)
        condenser.load_state(start)
        condenser.step(0)
    assert torch.equal(ahead.pixels, plain.pixels)
    ahead.close()


def test_at_most_200_decoded_images_of_a_class_are_used() -> None:
    config = digits_settings(ipc=60, class_chunk=2, iterations=1)
    condenser = digits_condenser(config)
    shown = condenser._select_decoded(0)
    assert shown is not None
    assert shown.shape == (10, 200)
    assert all(len(row.unique()) == 200 for row in shown)
    assert not torch.equal(shown, condenser._select_decoded(1))
    condenser.step(0)
    # each image has four tiles; 240 tiles, 40 of them left out: only those have no gradient
    tiles = condenser.state()["momentum"].unfold(3, 8, 8).unfold(4, 8, 8).flatten(5).abs().amax(-1)
    assert int((tiles.flatten(1) == 0).sum()) >= 10 * 40


def test_loss_falls_and_images_move_towards_their_class() -> None:
    condenser, losses = run_steps(digits_settings(real_batch=64), 18)
    values = torch.stack(losses).mean(1)
    assert values[-5:].mean() < 0.75 * values[:5].mean()
    assert condenser.pixels.min() >= 0
    assert condenser.pixels.max() <= 1


def test_the_value_is_extra_and_changes_no_pixel() -> None:
    with_value, without = (digits_condenser() for _ in range(2))
    for iteration in range(2):
        assert with_value.step(iteration).losses is not None
        step = without.step(iteration, value=False)
        assert step.losses is None
        assert step.finite.all()
    assert torch.equal(with_value.pixels, without.pixels)


def test_a_gradient_that_is_not_finite_is_noticed_without_the_value() -> None:
    condenser = digits_condenser()
    condenser.pixels[7, 0, 0, 2, 2] = float("nan")
    assert condenser.step(0, value=False).finite.tolist() == [c != 7 for c in range(10)]


class Joint(M3D):
    """A method that compares all classes with each other."""

    scope = "joint"


def test_all_classes_of_a_joint_method_are_one_chunk() -> None:
    many = {"ipc": 20, "real_batch": 4}  # more than a CPU's caches hold
    assert len(digits_condenser(digits_settings(**many)).chunks) > 1
    joint = digits_condenser(digits_settings(method=f"{__name__}:Joint", **many))
    assert joint.chunks == [range(10)]


@pytest.mark.parametrize("method", ["m3d", "dm"])
def test_methods_run_and_differ(method: str) -> None:
    _, losses = run_steps(digits_settings(method=method), 1)
    assert losses[0].shape == (10,)
    assert (losses[0] > 0).all()


def test_dm_is_the_distance_of_mean_features() -> None:
    config = digits_settings(method="dm", augment="none")
    condenser = digits_condenser(config)
    start = condenser.pixels.clone()
    losses = condenser.step(0).losses
    draws, labels = torch.zeros(10, UNIFORMS), torch.arange(10)
    real = Views(open_digits(config).batch(range(10), config.real_batch), draws, labels)
    fake = Views(decode(start, config.factor), draws, labels)
    (real_features,), (fake_features,) = (
        condenser.embedder.real(views).each for views in (real, fake)
    )
    difference = real_features.mean(1) - fake_features.mean(1)
    torch.testing.assert_close(losses[:, 0], difference.square().sum(1), rtol=1e-3, atol=1e-5)


def test_what_a_cpu_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="tf32 is a GPU's"):
        digits_settings(precision="tf32")
    with pytest.raises(UserError, match="cuda_graphs: expected a CUDA device"):
        digits_settings(cuda_graphs=True)
    with pytest.raises(UserError, match="class_chunk: expected a number above 0"):
        digits_settings(class_chunk=0)


class Replayed:
    """A stand-in for the CUDA graph: it is called, and there is one."""

    built = 0

    def __init__(self, function, updated, device) -> None:
        Replayed.built += 1
        self.function = function

    def __call__(self) -> None:
        self.function()


@pytest.mark.parametrize("host", [False, True])
def test_one_graph_serves_chunks_of_all_sizes_with_and_without_the_value(
    monkeypatch: pytest.MonkeyPatch, host: bool
) -> None:
    monkeypatch.setattr(condenser_module, "CudaGraphRunner", Replayed)
    # chunks of 3, 3 and 4 classes
    config = digits_settings(class_chunk=4, real_batch=4, lr_schedule="cosine", iterations=4)
    graphed = digits_condenser(dataclasses.replace(config, cuda_graphs=True), host_pixels=host)
    plain = digits_condenser(config)
    built = Replayed.built
    for iteration, value in enumerate((True, False, True)):
        ours = graphed.step(iteration, value=value)
        expected = plain.step(iteration, value=value)
        assert (ours.losses is None) == (not value)
        if value:
            torch.testing.assert_close(ours.losses, expected.losses, atol=2e-5, rtol=1e-4)
        assert ours.finite.all()
    torch.testing.assert_close(graphed.pixels, plain.pixels, atol=2e-4, rtol=0)
    assert Replayed.built == built


def gpu_settings(**given) -> ResolvedConfig:
    given = {"dataset": "digits", "device": "cuda", "real_batch": 12} | given
    return CondenseConfig(**given).resolve()


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_an_iteration_does_not_wait_for_the_device(compile: bool, graphs: bool) -> None:
    config = gpu_settings(
        compile=compile, cuda_graphs=graphs, class_chunk=4, ipm=1, lr_schedule="cosine"
    )
    images = generate_images(10, 20, 1, 16, device="cuda")
    with Condenser(config, images) as condenser:
        for value in (True, False):
            condenser.step(0, value=value)  # compiles and captures
        torch.cuda.set_sync_debug_mode("error")
        try:
            for iteration in range(1, 4):
                condenser.step(iteration, value=iteration == 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_captured_step_follows_the_rate() -> None:
    config = gpu_settings(cuda_graphs=True, compile=False, lr_schedule="cosine", iterations=10_000)
    condenser, moved = Condenser(config, generate_images(10, 20, 1, 16, device="cuda")), []
    for iteration in (0, 1, 9_999):  # the last one's rate is nearly nothing
        before = condenser.pixels.clone()
        condenser.step(iteration)
        moved.append(float((condenser.pixels - before).abs().max()))
    assert moved[0] > 1e-3
    assert moved[1] > 1e-3
    assert moved[2] < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("host", [False, True])
def test_graphs_compiler_and_host_pixels_change_nothing_but_rounding(precision, host) -> None:
    ends = []
    for compile, graphs in ((False, False), (False, True), (True, True)):
        config = gpu_settings(
            precision=precision, compile=compile, cuda_graphs=graphs, class_chunk=3
        )
        condenser = Condenser(
            config, generate_images(10, 20, 1, 16, device="cuda"), host_pixels=host
        )
        condenser.step(0)
        ends.append(condenser.state()["momentum"].cpu().flatten(1))
    bound = 0.999 if precision == "fp32" else 0.97
    for end in ends[1:]:
        assert torch.cosine_similarity(end, ends[0], dim=1).min() > bound
