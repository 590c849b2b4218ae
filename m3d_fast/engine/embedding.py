"""Real and synthetic images to features, by a network that is frozen and drawn anew."""

import copy
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..augment import augment
from ..methods.protocol import Views
from ..networks import initialise
from ..networks.arithmetic import CPU_PIECE


def even_piece(count: int, limit: int) -> int:
    """A piece of ``count`` things, at most ``limit``: it divides them unless it gets half as big.

    A compiled function is compiled once per shape.
    """
    for pieces in range(-(-count // limit), 2 * (count // limit) + 1):
        if count % pieces == 0:
            return count // pieces
    return min(count, limit)


class Embedder:
    """Normalises, augments and embeds images under the network of the moment.

    Args:
        network: has ``embed(images)``; its parameters get no gradients.
        device: where everything lives.
        precision: "bf16", "tf32" or "fp32"; features come out in float32 either way.
        compile: whether to torch.compile the whole of it.
        mean: per channel, pixels in [0, 1].
        std: per channel.
        operations: of the augmentation.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        precision: str,
        compile: bool,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        operations: tuple[str, ...],
    ) -> None:
        self.network = network.requires_grad_(False).to(device)  # as drawn, float32
        self.device, self.compiled, self.operations = device, compile, operations
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        # uncompiled, a CPU's instance norm is slow over channels that are next to each other
        by_channel = device.type == "cuda" or compile
        self._layout = torch.channels_last if by_channel else torch.contiguous_format
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._running = copy.deepcopy(self.network).to(self._dtype)  # as run
        if by_channel:
            _channels_last(self._running)
        self._piece = CPU_PIECE if device.type == "cpu" else 1 << 30
        self._run = self._whole
        if compile:
            # fullgraph: a fall-back to eager is an error, not a silent slowness
            self._run = torch.compile(self._whole, dynamic=False, fullgraph=True)

    def redraw(self, generator: torch.Generator) -> None:
        """Initialise the network anew, in place."""
        initialise(self.network, generator)
        torch._foreach_copy_(list(self._running.parameters()), list(self.network.parameters()))

    def real(self, views: Views) -> Tensor:
        """Features of real images, ``(C, n, D)``, without gradient."""
        with torch.no_grad():
            parts = [
                torch.cat([self._features(part, "real") for part in parts], 1)
                for parts in self._pieces(views)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def synthetic(self, views: Views) -> Tensor:
        """Features of synthetic images, ``(C, n, D)``, differentiable in them."""
        return self._features(views, "synthetic")

    def prepared(self, views: Views) -> Tensor:
        """Normalised and augmented images, ``(C, n, channels, H, W)`` float32."""
        images = views.images
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return augment((images - self.mean) / self.std, views.draws, self.operations)

    def _pieces(self, views: Views) -> Iterator[list[Views]]:
        """Rows of classes, each cut along its images, of at most ``_piece`` images in all."""
        classes, count = views.images.shape[:2]
        images = even_piece(count, self._piece)
        together = even_piece(classes, max(1, self._piece // count))
        for rows, draws in zip(
            views.images.split(together), views.draws.split(together), strict=True
        ):
            yield [Views(part, draws) for part in rows.split(images, 1)]

    def _features(self, views: Views, kind: str) -> Tensor:
        if self.compiled:
            with record_function(f"network {kind}"):
                features = self._run(*views)
        else:
            with record_function("augmentation"):
                images = self.prepared(views)
            with record_function(f"network {kind}"):
                features = self._embed(images)
        return features.unflatten(0, views.images.shape[:2])

    def _whole(self, images: Tensor, draws: Tensor) -> Tensor:
        return self._embed(self.prepared(Views(images, draws)))

    def _embed(self, images: Tensor) -> Tensor:
        images = images.flatten(0, 1).to(self._dtype, memory_format=self._layout)
        embed = cast(Callable[[Tensor], Tensor], self._running.embed)
        return embed(images).float()


def _channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions channels-last, also those of a single channel.

    torch takes a weight of one input channel for contiguous as it is, and then convolves 8x slower
    (1 to 128 channels, 28 px, bf16, CPU).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _, inputs, height, width = module.weight.shape
            strides = (height * width * inputs, 1, width * inputs, inputs)
            weight = module.weight.new_empty_strided(module.weight.shape, strides)
            module.weight = nn.Parameter(weight.copy_(module.weight), requires_grad=False)
