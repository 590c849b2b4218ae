"""ConvNet-D, the small network of the condensation literature (arXiv 2006.05929)."""

import torch
from torch import Tensor, nn

from .layers import AveragePool, FirstConvolution, InstanceNorm

WIDTH = 128
LAYERS = ("conv", "norm", "relu", "block")  # of a block, in order


class ConvNet(nn.Module):
    """``depth`` blocks of [3x3 convolution, instance norm, ReLU, 2x2 average pool], a linear head.

    The first convolution pads 28-pixel images to 32, as is usual in the field.

    Args:
        channels: image channels.
        size: image side in pixels, divisible by ``2**depth`` (28 counts as 32).
        num_classes: outputs of the linear head.
        depth: number of blocks: 3 up to 32 px, 4 at 64 px, 5 at 128 px.
    """

    def __init__(self, channels: int, size: int, num_classes: int, depth: int = 3) -> None:
        super().__init__()
        padded = 32 if size == 28 else size
        if padded % 2**depth:
            raise ValueError(
                f"ConvNet of depth {depth} expects a size divisible by {2**depth}, got {size} px"
            )
        blocks: list[nn.Module] = []
        for block in range(depth):
            first = FirstConvolution(channels, WIDTH, 3, padding=3 if size == 28 else 1)
            blocks += [
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if block else first,
                InstanceNorm(WIDTH),
                nn.ReLU(),
                AveragePool(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTH * (padded // 2**depth) ** 2, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Features of the last layer before the head, ``(B, 128 * (size / 2**depth)**2)``."""
        return torch.flatten(self.blocks(images), 1)

    def maps(self, images: Tensor, at: str) -> tuple[tuple[Tensor, ...], Tensor]:
        """Feature maps of every block and last features, in one pass.

        Args:
            images: ``(B, channels, H, W)``.
            at: "conv", "norm", "relu" or "block" (after its pool).

        Returns:
            One map ``(B, 128, h, w)`` per block, first to last, and :meth:`embed` of the images.
        """
        wanted, maps = LAYERS.index(at), []
        for number, layer in enumerate(self.blocks):
            images = layer(images)
            if number % len(LAYERS) == wanted:
                maps.append(images)
        return tuple(maps), torch.flatten(images, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``."""
        return self.head(self.embed(images))
