"""What a run starts from: real images, as tiles or one each, noise, or a condensed set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.common.seeds import derive_seed
from m3d_fast.initial import initial_pixels
from m3d_fast.run.condensed import write_condensed_set
from tests.helpers.condensers import digits_settings, open_digits


def test_initialisations() -> None:
    config = digits_settings(ipc=2)
    real = open_digits(config)
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
    again = initial_pixels(open_digits(config), config)
    assert torch.equal(mixed, again)
    other = initial_pixels(real, replace(config, seed=derive_seed(1, "coreset")))
    assert not torch.equal(mixed, other)


@pytest.mark.parametrize(
    "given", [{"factor": 1, "ipc": 2}, {"decode": "basis", "decoded": 20, "ipc": 2}]
)
def test_a_condensed_set_is_taken_as_it_is_stored(tmp_path: Path, given: dict) -> None:
    config = digits_settings(**given)
    real = open_digits(config)
    pixels = initial_pixels(real, config)
    file = tmp_path / "synthetic.safetensors"
    write_condensed_set(file, config, real, [pixels], 3)
    for start in (file, tmp_path):  # its file, or its run folder
        next_config = digits_settings(init=str(start), ipc=2)
        assert torch.equal(initial_pixels(real, next_config), pixels)
        assert torch.equal(initial_pixels(real, next_config, range(3, 5)), pixels[3:5])
        assert (next_config.factor, next_config.decoded) == (config.factor, config.decoded)


def test_a_set_that_does_not_suit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    config = digits_settings(ipc=2)
    real, file = open_digits(config), tmp_path / "synthetic.safetensors"
    write_condensed_set(file, config, real, [initial_pixels(real, config)], 3)

    def start(**given) -> None:
        initial_pixels(real, digits_settings(init=str(file), **given))

    with pytest.raises(UserError, match=r"holds images of shape .* the --dataset, --ipc and"):
        start(ipc=1)
    with pytest.raises(UserError, match="is decoded by factor 2 and no basis, the run by factor 1"):
        start(ipc=2, factor=1)
    with pytest.raises(UserError, match="nowhere"):
        digits_settings(init=str(tmp_path / "nowhere.safetensors"))
