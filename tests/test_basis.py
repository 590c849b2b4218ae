"""A basis that classes share: what it stores, what it decodes to, and that runs learn it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from m3d_fast.basis import Basis
from m3d_fast.common.errors import UserError
from m3d_fast.config import CondenseConfig
from m3d_fast.construction import condense
from m3d_fast.engine.unrolled.condenser import UnrolledCondenser
from m3d_fast.evaluation.config import EvaluateConfig
from m3d_fast.evaluation.evaluator import evaluate
from m3d_fast.initial import initial_images, initial_pixels
from m3d_fast.loaders import open_dataset
from m3d_fast.reproduction.pictures import BEFORE, _save_strip, save_strips
from m3d_fast.synthetic import SyntheticSet
from tests.helpers.condensers import digits_condenser, digits_settings, open_digits, run_steps

SETTINGS = {"decode": "basis", "decoded": 6, "optimizer": "adam", "lr_img": 0.02, "group": 5}


def make_basis(group: int = 5, images: int = 6) -> Basis:
    return Basis.fit(images, 8, group, (1, 1, 16, 16))


@pytest.mark.parametrize("group", [1, 5, 10])
@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (10, 3, 32, 32), (1, 3, 65, 65)])
def test_a_basis_fills_the_room_of_the_images_and_no_more(group: int, shape) -> None:
    side = -(-shape[-1] // 2)
    basis = Basis.fit(18, side, group, shape)
    one, room = shape[1] * side**2, group * math.prod(shape)

    def numbers(components: int) -> int:
        return (1 + components) * one + group * 18 * components

    assert numbers(basis.components) <= room
    most = min(group * 18 - 1, one)
    assert basis.components == most or numbers(basis.components + 1) > room - group


def test_decoding_is_a_mean_and_components_by_coefficients() -> None:
    basis = make_basis(group=2, images=3)
    stored = torch.rand(4, 1, 1, 16, 16)
    found = basis.decode(stored)
    assert found.shape == (4, 3, 1, 16, 16)
    share = -(-(1 + basis.components) * 64 // 2)
    for first in (0, 2):  # the classes of each group
        numbers = stored[first : first + 2].flatten(1)
        shared = numbers[:, :share].flatten()[: (1 + basis.components) * 64]
        mean, components = shared[:64], (shared[64:].view(-1, 64) - 0.5) * 2
        for member in range(2):
            for image in range(3):
                start = share + image * basis.components
                coefficients = (numbers[member, start : start + basis.components] - 0.5) * 8
                small = (mean + coefficients @ components).view(1, 1, 8, 8)
                # enlarging keeps the mean of a smooth image, which the cosine series is
                ours = found[first + member, image]
                assert ours.min() >= 0
                assert ours.max() <= 1
                if small.min() > 0.05 and small.max() < 0.95:
                    torch.testing.assert_close(ours.mean(), small.mean(), atol=0.02, rtol=0)


def test_images_within_the_span_are_encoded_exactly() -> None:
    """Images of as many degrees of freedom as components, smooth: enlarged 8 px."""
    basis = make_basis(group=5, images=6)
    rank = min(basis.components, 4)
    flat = 0.5 + 0.1 * torch.randn(30, rank) @ torch.randn(rank, 64).div(8)
    small = flat.view(5, 6, 1, 8, 8)
    images = small.repeat_interleave(2, -1).repeat_interleave(2, -2)  # shrinks to small exactly
    again = basis.decode(basis.encode(images))
    # the series through the same samples, as they are enlarged everywhere
    expected = basis.decode(basis.encode(again))
    shrunk = F.interpolate(again.flatten(0, 1), (8, 8), mode="area").view_as(small)
    assert (shrunk - small).abs().mean() < 0.02
    assert (again - expected).abs().mean() < 0.02


def test_it_is_differentiable() -> None:
    basis = make_basis(group=2, images=3)
    # nothing is clamped
    stored = (0.5 + 0.02 * torch.randn(2, 1, 1, 16, 16)).requires_grad_()
    weights = torch.rand(2, 3, 1, 16, 16)
    (basis.decode(stored) * weights).sum().backward()
    assert stored.grad is not None
    direction = torch.randn_like(stored)
    with torch.no_grad():
        at = [(basis.decode(stored + e * direction) * weights).sum() for e in (1e-3, -1e-3)]
    slope = ((at[0] - at[1]) / 2e-3).item()
    assert slope == pytest.approx((stored.grad * direction).sum().item(), rel=0.02)


def test_a_run_starts_near_the_real_images_and_learns_the_basis() -> None:
    config = digits_settings(**SETTINGS, real_batch=8)
    real = open_digits(config)
    start = initial_pixels(real, config)
    assert start.shape == (10, 1, 1, 16, 16)
    images = initial_images(open_digits(config), config)
    assert images.shape == (10, 6, 1, 16, 16)
    chosen = initial_pixels(
        open_digits(config), replace(config, decode="tiles", decoded=None, init="real", ipc=6)
    )
    assert (images - chosen).square().mean() < 0.3 * (chosen - chosen.mean((0, 1))).square().mean()
    condenser, losses = run_steps(replace(config, init="noise", ipm=50), 12)
    start = initial_pixels(open_digits(config), replace(config, init="noise"))
    assert losses[-1].mean() < losses[0].mean()
    basis = config.build_basis(10, (1, 16, 16))
    assert basis is not None
    shared = slice(0, -(-(1 + basis.components) * 64 // 5))
    moved = (condenser.pixels - start).flatten(1).abs()
    assert moved[:, shared].max() > 0.01
    assert moved[:, shared.stop : shared.stop + 6 * basis.components].max() > 0.01


def test_chunks_and_ranks_hold_whole_groups() -> None:
    config = digits_settings(**SETTINGS, real_batch=6)
    whole, _ = run_steps(replace(config, class_chunk=10), 2)
    parts, _ = run_steps(replace(config, class_chunk=1), 2)
    assert parts.chunks == [range(5), range(5, 10)]
    torch.testing.assert_close(parts.pixels, whole.pixels, atol=2e-3, rtol=0)
    share = digits_condenser(replace(config, class_chunk=5), classes=range(5, 10))
    alone = digits_condenser(replace(config, class_chunk=5))
    for iteration in range(2):
        share.step(iteration)
        alone.step(iteration)
    assert torch.equal(share.pixels, alone.pixels[5:])


def test_a_file_is_read_decoded_and_counts_as_what_it_stores(tmp_path) -> None:
    from m3d_fast.run.condensed import write_condensed_set

    config = digits_settings(**SETTINGS)
    condenser = digits_condenser(config)
    file = tmp_path / "set.safetensors"
    write_condensed_set(file, config, condenser.real, [condenser.pixels], 0)
    synthetic = SyntheticSet.load(file)
    assert (synthetic.ipc, synthetic.stored_per_class, synthetic.factor) == (6, 1, 1)
    assert synthetic.labels.tolist() == [label for label in range(10) for _ in range(6)]
    basis = config.build_basis(10, (1, 16, 16))
    assert basis is not None
    assert torch.equal(synthetic.images, basis.decode(condenser.pixels).flatten(0, 1))
    synthetic.save(tmp_path / "decoded.safetensors")
    again = SyntheticSet.load(tmp_path / "decoded.safetensors")
    assert torch.equal(again.images, synthetic.images)
    assert again.stored_per_class == 6
    assert file.stat().st_size < (tmp_path / "decoded.safetensors").stat().st_size / 4


def test_pictures_of_a_run_and_its_evaluation_are_of_decoded_images(tmp_path) -> None:
    out = tmp_path / "run"
    given = {"dataset": "digits", "device": "cpu", "precision": "fp32", "real_batch": 4}
    config = CondenseConfig(**given, **SETTINGS, iterations=1, out=str(out))
    condense(config)
    save_strips(out)
    start = initial_images(open_dataset("digits"), config.resolve())
    _save_strip(start, tmp_path / "expected.png")
    assert (out / BEFORE).read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert not (out / "grid_decoded.png").exists()
    content = evaluate(out, EvaluateConfig(epochs=1, repeats=1, baselines="random", device="cpu"))
    assert (content["ipc"], content["factor"]) == (1, 1)
    assert content["image_bytes"] == 10 * 256 * 4
    counted = {result["method"]: result["training_images"] for result in content["results"]}
    assert counted == {"random": 10, "initial": 60, "m3d": 60}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_mean_and_components_move_at_a_tenth_of_the_rate(schedule: str) -> None:
    # Adam's first step moves every number that has a gradient by the rate
    config = digits_settings(**SETTINGS, real_batch=8, lr_schedule=schedule, iterations=2)
    start = initial_pixels(open_digits(config), config)
    condenser, _ = run_steps(config, 1)
    basis = config.build_basis(10, (1, 16, 16))
    assert basis is not None
    moved = (condenser.pixels - start).flatten(1).abs()
    coefficients = slice(basis.share, basis.share + basis.images * basis.components)
    torch.testing.assert_close(moved[:, : basis.share].quantile(0.9), torch.tensor(0.002))
    torch.testing.assert_close(moved[:, coefficients].quantile(0.9), torch.tensor(0.02))
    unrolled = replace(config, method="bptt", options={"horizon": 4, "window": 2, "between": 1})
    unrolled = replace(unrolled, pool=1, augment="none", add={})
    with UnrolledCondenser(unrolled, open_digits(unrolled)) as trained:
        trained.step(0)
        moved = (trained.pixels - start).flatten(1).abs()
    torch.testing.assert_close(moved[:, : basis.share].quantile(0.9), torch.tensor(0.002))
    torch.testing.assert_close(moved[:, coefficients].quantile(0.9), torch.tensor(0.02))


def test_adam_is_its_default_and_strong_has_it_below_100_and_whole_images_for_100() -> None:
    given = {
        name: (config.decode, config.factor, config.decoded, config.optimizer, config.lr_img)
        for name, config in {
            "basis": digits_settings(decode="basis"),
            "by sgd": digits_settings(decode="basis", optimizer="sgd"),
            "basis 4": digits_settings(decode="basis", ipc=4),
            "basis 250": digits_settings(decode="basis", ipc=250),
            "strong": digits_settings(preset="strong"),
            "strong tiles": digits_settings(preset="strong", decode="tiles"),
            "strong 9": digits_settings(preset="strong", ipc=9),
            "strong tiles 9": digits_settings(preset="strong", ipc=9, decode="tiles"),
            "strong 49": digits_settings(preset="strong", ipc=49),
            "strong 99": digits_settings(preset="strong", ipc=99),
            "strong 100": digits_settings(preset="strong", ipc=100),
        }.items()
    }
    assert given == {
        "basis": ("basis", 2, 18, "adam", 0.01),
        "by sgd": ("basis", 2, 18, "sgd", 1.0),
        "strong": ("basis", 2, 18, "adam", 0.01),
        "basis 4": ("basis", 1, 32, "adam", 0.005),
        "basis 250": ("basis", 1, 250, "adam", pytest.approx(0.01 / math.sqrt(250))),
        "strong tiles": ("tiles", 2, None, "sgd", 0.5),
        "strong 9": ("basis", 1, 72, "adam", pytest.approx(0.01 / 3)),
        "strong tiles 9": ("tiles", 2, None, "sgd", 4.5),
        "strong 49": ("basis", 1, 200, "adam", pytest.approx(0.01 / 7)),
        "strong 99": ("basis", 1, 200, "adam", pytest.approx(0.01 / math.sqrt(99))),
        "strong 100": ("tiles", 1, None, "sgd", 5.0),
    }


def test_invalid_settings_are_one_sentence() -> None:
    with pytest.raises(UserError, match="decode: 'wavelet' is not known; known: tiles, basis"):
        digits_settings(decode="wavelet")
    with pytest.raises(UserError, match=r"decoded: tiles are 4 images each; .* --decode basis"):
        digits_settings(decoded=5)
    with pytest.raises(UserError, match=r"decoded: 500 images of each of 10 classes .* do not fit"):
        digits_settings(decode="basis", decoded=500).build_basis(10, (1, 16, 16))
    with pytest.raises(UserError, match="decoded: herding selects real images; leave it out"):
        digits_settings(method="herding", real_batch=None, decoded=5)
