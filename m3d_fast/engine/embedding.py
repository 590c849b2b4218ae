"""Features of real and synthetic images under a frozen network that is redrawn in place."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..augment import augment
from ..methods.protocol import Views
from ..networks import initialise
from ..networks.arithmetic import CPU_PIECE, compile_per_shape


def choose_piece_size(count: int, limit: int) -> int:
    """A size of at most ``limit`` to cut ``count`` items by, if possible into equal pieces.

    A compiled function is compiled once per shape, so unequal pieces cost a compilation; sizes of
    less than half the limit would cost more.
    """
    for pieces in range(-(-count // limit), 2 * (count // limit) + 1):
        if count % pieces == 0:
            return count // pieces
    return min(count, limit)


class Embedder:
    """Normalises, augments and embeds images under the network of the iteration.

    Args:
        network: has ``embed(images)``; its parameters get no gradient.
        device: of the network and the images.
        precision: "bf16", "tf32" or "fp32"; features are float32 in any case.
        compile: whether to compile normalisation, augmentation and network as one function.
        mean: per channel, pixels in [0, 1].
        std: per channel.
        operations: names of the augmentation's operations.
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
        # uncompiled, instance norm is slow on a CPU over channels-last tensors
        channels_last = device.type == "cuda" or compile
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # the copy that runs, in the precision and layout of the run
        self._running_copy = copy.deepcopy(self.network).to(self._dtype)
        if channels_last:
            _convert_to_channels_last(self._running_copy)
        self._piece = CPU_PIECE if device.type == "cpu" else 1 << 30
        self._run: Callable[..., Tensor] = self._prepare_and_embed
        if compile:
            # fullgraph: falling back to eager raises instead of being silently slow
            self._run = compile_per_shape(self._prepare_and_embed, fullgraph=True)

    def redraw(self, generator: torch.Generator) -> None:
        """Draw the parameters of the network from ``generator``, in place."""
        initialise(self.network, generator)
        torch._foreach_copy_(list(self._running_copy.parameters()), list(self.network.parameters()))

    @contextmanager
    def run_eagerly(self) -> Iterator[None]:
        """Within the block, do not compile: for shapes that are run once."""
        compiled, self.compiled = self.compiled, False
        try:
            yield
        finally:
            self.compiled = compiled

    def real(self, views: Views) -> Tensor:
        """Features of real images, ``(C, n, D)``, without gradient."""
        with torch.no_grad():
            parts = [
                torch.cat([self._embed_views(part, "real") for part in parts], 1)
                for parts in self._pieces(views)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def synthetic(self, views: Views) -> Tensor:
        """Features of synthetic images, ``(C, n, D)``, differentiable in them."""
        return self._embed_views(views, "synthetic")

    def _prepare(self, views: Views) -> Tensor:
        """Normalise and augment the images: ``(C, n, channels, H, W)`` float32."""
        images = views.images
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return augment((images - self.mean) / self.std, views.draws, self.operations)

    def _pieces(self, views: Views) -> Iterator[list[Views]]:
        """Groups of classes, each cut along its images into pieces of at most ``_piece`` images."""
        classes, count = views.images.shape[:2]
        images = choose_piece_size(count, self._piece)
        together = choose_piece_size(classes, max(1, self._piece // count))
        for rows, draws in zip(
            views.images.split(together), views.draws.split(together), strict=True
        ):
            yield [Views(part, draws) for part in rows.split(images, 1)]

    def _embed_views(self, views: Views, kind: str) -> Tensor:
        if self.compiled:
            with record_function(f"network {kind}"):
                features = self._run(*views)
        else:
            with record_function("augmentation"):
                images = self._prepare(views)
            with record_function(f"network {kind}"):
                features = self._embed(images)
        return features.unflatten(0, views.images.shape[:2])

    def _prepare_and_embed(self, images: Tensor, draws: Tensor) -> Tensor:
        return self._embed(self._prepare(Views(images, draws)))

    def _embed(self, images: Tensor) -> Tensor:
        images = images.flatten(0, 1).to(self._dtype, memory_format=self._layout)
        embed = cast(Callable[[Tensor], Tensor], self._running_copy.embed)
        return embed(images).float()


def _convert_to_channels_last(network: nn.Module) -> None:
    """Give the weights of convolutions channels-last strides, also those of one input channel.

    torch treats a weight of one input channel as contiguous in either layout, and then convolves 8x
    slower (1 to 128 channels, 28 px, bf16, CPU).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _, inputs, height, width = module.weight.shape
            strides = (height * width * inputs, 1, width * inputs, inputs)
            weight = module.weight.new_empty_strided(module.weight.shape, strides)
            module.weight = nn.Parameter(weight.copy_(module.weight), requires_grad=False)
