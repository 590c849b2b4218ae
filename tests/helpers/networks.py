"""A small ConvNet in float64 that methods can read without an engine."""

import pytest
import torch
from torch import Tensor, nn

from m3d_fast.methods import Network
from m3d_fast.networks import convnet


class Float64Network:
    """A :class:`m3d_fast.methods.Network` of 16-pixel grey images, whatever the dtype."""

    def __init__(self, module: nn.Module, expert: Network | None, frequencies: int = 1) -> None:
        self.module, self.expert = module, expert
        self.accuracy = torch.tensor(0.37, dtype=torch.float64)
        self.noise = torch.randn(frequencies, module.head.in_features, dtype=torch.float64)

    def embed(self, images: Tensor) -> Tensor:
        return self.module.embed(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def maps(self, images: Tensor, at: str) -> tuple[Tensor, ...]:
        maps, _ = self.module.maps(images.flatten(0, 1), at)
        return tuple(part.unflatten(0, images.shape[:2]) for part in maps)

    def classify(self, features: Tensor) -> Tensor:
        return self.module.head(features)


def build_small(monkeypatch: pytest.MonkeyPatch, frequencies: int = 1) -> Float64Network:
    """A network of 6 channels and ten classes, and another one as its expert."""
    monkeypatch.setattr(convnet, "WIDTH", 6)
    torch.manual_seed(11)
    modules = [convnet.ConvNet(1, 16, 10).double().requires_grad_(False) for _ in range(2)]
    return Float64Network(modules[0], Float64Network(modules[1], None), frequencies)
