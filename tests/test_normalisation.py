"""Pixels as networks see them."""

import torch

from m3d_fast.normalisation import Normalisation


def test_bytes_and_unit_range_are_normalised_alike_and_undone() -> None:
    normalise = Normalisation((0.5, 0.25), (0.5, 0.2))
    images = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)[None, :, :, None]
    expected = torch.tensor([[-1.0, 1.0], [-0.25, 0.75]])[None, :, :, None]
    torch.testing.assert_close(normalise(images), expected)
    torch.testing.assert_close(normalise(images.float() / 255), expected)
    torch.testing.assert_close(normalise.undo(expected), images.float() / 255)
