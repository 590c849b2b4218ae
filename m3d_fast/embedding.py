"""Feature embedding by a network that is frozen and drawn anew every few iterations."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn

from .networks import initialise

# images per forward on a CPU: activations stay in its caches (1.9x faster per image at 40 than at
# 640, ConvNet-3 in bf16, 2 cores)
CPU_PIECE = 64


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Network arithmetic in ``precision`` ("bf16" or "fp32")."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def in_pieces(function: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """``function`` over ``images`` in as few and as equal pieces of at most ``size`` as can be."""
    pieces = -(-len(images) // size)
    if pieces == 1:
        return function(images)
    # equal pieces where possible: a compiled function is compiled once per shape
    while pieces < 2 * (len(images) // size) and len(images) % pieces:
        pieces += 1
    return torch.cat([function(piece) for piece in images.tensor_split(pieces)])


class Embedder:
    """Real and synthetic images to features, under the network of the moment.

    Args:
        network: has ``embed(images)``; its parameters get no gradients.
        device: where everything lives.
        precision: "bf16" or "fp32"; features come out in float32 either way.
        compile: whether to torch.compile the embedding.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, precision: str, compile: bool
    ) -> None:
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.network = network.requires_grad_(False).to(device)
        self.network.to(memory_format=layout)
        self.device = device
        self.precision = precision
        self._layout = layout
        self._piece = CPU_PIECE if device.type == "cpu" else 1 << 30
        embed = cast(Callable[[Tensor], Tensor], network.embed)
        self._embed = torch.compile(embed, dynamic=False) if compile else embed

    def redraw(self, generator: torch.Generator) -> None:
        """Initialise the network anew, in place."""
        initialise(self.network, generator)

    def real(self, images: Tensor) -> Tensor:
        """Features of real images, ``(C, N, channels, H, W)`` to ``(C, N, D)``, no gradient."""
        with torch.no_grad():
            features = in_pieces(self._features, images.flatten(0, 1), self._piece)
        return features.unflatten(0, images.shape[:2])

    def synthetic(self, images: Tensor) -> Tensor:
        """Features of synthetic images, ``(C, M, channels, H, W)`` to ``(C, M, D)``."""
        return self._features(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def _features(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return self._embed(images.contiguous(memory_format=self._layout)).float()
