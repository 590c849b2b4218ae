"""One step of the engine against the published loop; chunks; seeds; the loop's promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.baselines.published import loop_gradients
from m3d_fast.augment import UNIFORMS, augment, draw, parse_strategy
from m3d_fast.common.seeds import derived_seed, generator
from m3d_fast.config import CondenseConfig, ResolvedConfig
from m3d_fast.coreset import initial_pixels
from m3d_fast.engine.condenser import Condenser
from m3d_fast.engine.pixel_store import Moving
from m3d_fast.loaders import RealImages, open_dataset
from m3d_fast.methods.protocol import Views
from m3d_fast.synthetic import decode


def settings(**given) -> ResolvedConfig:
    given = {"dataset": "digits", "device": "cpu", "precision": "fp32", "real_batch": 12} | given
    return CondenseConfig(**given).resolved()


def digits(config: ResolvedConfig, seed: int = 5) -> RealImages:
    return open_dataset("digits", size=config.size, seed=seed)


def stepped(config: ResolvedConfig, steps: int) -> tuple[Condenser, list[Tensor]]:
    condenser = Condenser(config, digits(config))
    return condenser, [condenser.step(i).losses for i in range(steps)]


@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("network", ["convnet3", "resnetap10"])
def test_a_step_has_the_published_loops_losses_and_pixel_gradients(network: str, ipc: int) -> None:
    config = settings(ipc=ipc, network=network, augment="flip_color_crop_rotate_cutout")
    condenser = Condenser(config, digits(config))
    pixels = condenser.pixels.clone()
    losses = condenser.step(0).losses
    gradient = condenser.state()["momentum"]  # that of the first step

    twin, operations = digits(config), parse_strategy(config.augment)
    draws = draw(10, generator(config.seed, "augment", 0))
    mean, std = condenser.embedder.mean, condenser.embedder.std
    real = (twin.batch(range(10), config.real_batch) / 255 - mean) / std

    def prepare_synthetic(c: int, leaf: Tensor) -> Tensor:
        images = (decode(leaf, config.factor) - mean) / std
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


def test_a_step_is_that_of_torchs_sgd_bit_for_bit() -> None:
    pixels = torch.rand(3, 2, 1, 8, 8)
    moving = Moving(pixels.clone(), torch.zeros_like(pixels))
    reference = torch.nn.Parameter(pixels.clone())
    optimizer = torch.optim.SGD([reference], lr=0.7, momentum=0.5)
    for _ in range(4):
        gradient = torch.randn_like(pixels)
        moving.step_(gradient, lr=0.7, momentum=0.5)
        reference.grad = gradient
        optimizer.step()
        reference.data.clamp_(0, 1)
        assert torch.equal(moving.pixels, reference)
        assert torch.equal(moving.momentum, optimizer.state[reference]["momentum_buffer"])
    assert (pixels == 0).sum() < (moving.pixels == 0).sum()


def test_momentum_gathers_the_steps_gradients() -> None:
    condenser = Condenser(settings(lr_img=3.0), digits(settings()))
    for iteration in range(3):
        before = {name: tensor.clone() for name, tensor in condenser.state().items()}
        condenser.step(iteration)
        after = condenser.state()
        alone = Condenser(settings(lr_img=3.0), digits(settings()))
        alone.load_state(before | {"momentum": torch.zeros_like(before["momentum"])})
        alone.step(iteration)
        velocity = 0.5 * before["momentum"] + alone.state()["momentum"]
        torch.testing.assert_close(after["momentum"], velocity)
        moved = (before["pixels"] - 3.0 * after["momentum"]).clamp(0, 1)
        torch.testing.assert_close(after["pixels"], moved)
    assert (after["pixels"] == 0).any()


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_change_nothing_but_rounding(chunk: int) -> None:
    whole, losses = stepped(settings(class_chunk=10), 3)
    parts, chunked = stepped(settings(class_chunk=chunk), 3)
    assert [len(c) for c in whole.chunks] == [10]
    assert max(len(c) for c in parts.chunks) <= chunk
    torch.testing.assert_close(torch.stack(chunked), torch.stack(losses), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(parts.pixels, whole.pixels, atol=2e-4, rtol=0)


def test_a_class_does_not_depend_on_the_other_classes_pixels() -> None:
    config = settings()
    one, other = Condenser(config, digits(config)), Condenser(config, digits(config))
    with torch.no_grad():
        other.pixels[1:] = other.pixels[1:].flip(0)
    one.step(0)
    other.step(0)
    torch.testing.assert_close(one.pixels[0], other.pixels[0])
    assert (one.pixels[1] - other.pixels[1]).abs().max() > 0.1


def test_one_seed_gives_one_result_and_another_gives_another() -> None:
    first, second = stepped(settings(), 4)[0], stepped(settings(), 4)[0]
    assert torch.equal(first.pixels, second.pixels)
    assert not torch.equal(first.pixels, stepped(settings(seed=1), 4)[0].pixels)


def test_networks_last_ipm_iterations_and_augmentation_one() -> None:
    condenser = Condenser(settings(ipm=2), digits(settings()))
    weights = []
    for iteration in range(4):
        condenser.step(iteration)
        weights.append(condenser.embedder.network.blocks[0].weight.clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert torch.equal(weights[2], weights[3])


def test_state_restores_the_very_run() -> None:
    straight, losses = stepped(settings(), 7)
    first, _ = stepped(settings(), 3)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    resumed = Condenser(settings(), digits(settings()))
    resumed.load_state(saved)
    again = [resumed.step(iteration).losses for iteration in range(3, 7)]
    assert torch.equal(resumed.pixels, straight.pixels)
    assert torch.equal(torch.stack(again), torch.stack(losses[3:]))


def test_at_most_200_decoded_images_of_a_class_are_shown() -> None:
    config = settings(ipc=60, class_chunk=2, iterations=1)
    condenser = Condenser(config, digits(config))
    shown = condenser._shown(0)
    assert shown is not None
    assert shown.shape == (10, 200)
    assert all(len(row.unique()) == 200 for row in shown)
    assert not torch.equal(shown, condenser._shown(1))
    condenser.step(0)
    # each image has four tiles; 240 tiles, 40 of them left out: only those have no gradient
    tiles = condenser.state()["momentum"].unfold(3, 8, 8).unfold(4, 8, 8).flatten(5).abs().amax(-1)
    assert int((tiles.flatten(1) == 0).sum()) >= 10 * 40


def test_loss_falls_and_images_move_towards_their_class() -> None:
    condenser, losses = stepped(settings(real_batch=64), 30)
    values = torch.stack(losses).mean(1)
    assert values[-5:].mean() < 0.75 * values[:5].mean()
    assert condenser.pixels.min() >= 0
    assert condenser.pixels.max() <= 1


@pytest.mark.parametrize("method", ["m3d", "dm"])
def test_methods_run_and_differ(method: str) -> None:
    _, losses = stepped(settings(method=method), 1)
    assert losses[0].shape == (10,)
    assert (losses[0] > 0).all()


def test_dm_is_the_distance_of_mean_features() -> None:
    config = settings(method="dm", augment="none")
    condenser = Condenser(config, digits(config))
    start = condenser.pixels.clone()
    losses = condenser.step(0).losses
    draws = torch.zeros(10, UNIFORMS)
    real = Views(digits(config).batch(range(10), config.real_batch), draws)
    fake = Views(decode(start, config.factor), draws)
    difference = condenser.embedder.real(real).mean(1) - condenser.embedder.real(fake).mean(1)
    torch.testing.assert_close(losses, difference.square().sum(1), rtol=1e-3, atol=1e-5)


def test_initialisations() -> None:
    config = settings(ipc=2)
    real = digits(config)
    everything = torch.stack([real.take(3, np.arange(n)) for n in [real.class_sizes[3]]])[0] / 255

    chosen = initial_pixels(real, replace(config, init="real"))
    for image in chosen[3]:
        assert (everything - image).abs().flatten(1).amax(1).min() < 1e-6, "an image of its class"
    assert not torch.equal(chosen[3, 0], chosen[3, 1])

    mixed = initial_pixels(real, config)
    assert mixed.shape == (10, 2, 1, 16, 16)
    small = everything.unflatten(-1, (8, 2)).unflatten(-3, (8, 2)).mean((-1, -3))
    for tile in (mixed[3, 0, :, :8, :8], mixed[3, 1, :, 8:, 8:]):
        assert (small - tile).abs().flatten(1).amax(1).min() < 1e-5, "a shrunken image of its class"

    noise = initial_pixels(real, replace(config, init="noise"))
    assert abs(noise.mean().item() - 0.5) < 0.02
    again = initial_pixels(digits(config), config)
    assert torch.equal(mixed, again)
    other = initial_pixels(real, replace(config, seed=derived_seed(1, "coreset")))
    assert not torch.equal(mixed, other)


@pytest.mark.filterwarnings("default")  # dynamo looks at .grad of tensors that have none
def test_a_compiled_step_is_the_eager_step() -> None:
    eager, losses = stepped(settings(compile=False), 1)
    compiled, same = stepped(settings(compile=True), 1)
    torch.testing.assert_close(same[0], losses[0], atol=2e-5, rtol=1e-4)
    exact, ours = eager.state()["momentum"], compiled.state()["momentum"]
    assert (ours - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_features_stay_close_to_float32(compile: bool) -> None:
    full, losses = stepped(settings(compile=False), 1)
    half, rough = stepped(settings(precision="bf16", compile=compile), 1)
    torch.testing.assert_close(rough[0], losses[0], rtol=0.02, atol=0.01)
    assert half.pixels.dtype == torch.float32
    cosine = torch.cosine_similarity(
        full.state()["momentum"].flatten(1), half.state()["momentum"].flatten(1), dim=1
    )
    assert cosine.min() > 0.98
