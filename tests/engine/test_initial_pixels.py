"""The images a run starts from: real ones, mixed as tiles or one each, or noise."""

from dataclasses import replace

import numpy as np
import torch

from m3d_fast.common.seeds import derive_seed
from m3d_fast.initial import initial_pixels
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
