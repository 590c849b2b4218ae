"""ResNetAP-10, the ImageNet network of IDC (arXiv 2205.14959): strides become average pools."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from .layers import AveragePool, InstanceNorm

STAGES = (64, 128, 256, 512)


class Block(nn.Module):
    """Two 3x3 convolutions at stride 1; ``pool`` averages after the first and in the shortcut."""

    def __init__(self, inputs: int, outputs: int, pool: int) -> None:
        super().__init__()
        shrink: list[nn.Module] = [AveragePool(pool)] if pool > 1 else []
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            InstanceNorm(outputs),
            nn.ReLU(),
            *shrink,
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            InstanceNorm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if pool > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(convolution, *shrink, InstanceNorm(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / pool, W / pool)``."""
        return self.run(images, "block")[1]

    def run(self, images: Tensor, at: str) -> tuple[Tensor, Tensor]:
        """The map after the last "conv", "norm", or "relu" and "block", and the output."""
        convolved = self.body[:-1](images)
        normed = self.body[-1](convolved)
        output = torch.relu(normed + self.shortcut(images))
        return {"conv": convolved, "norm": normed}.get(at, output), output


def _stem(channels: int, size: int) -> nn.Sequential:
    kernel, pool = (7, 4) if size > 128 else (3, 2) if size > 64 else (3, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, STAGES[0], kernel, padding=kernel // 2, bias=False),
        InstanceNorm(STAGES[0]),
        nn.ReLU(),
    ]
    if pool > 1:
        layers.append(AveragePool(pool))
    return nn.Sequential(*layers)


class ResNetAP10(nn.Module):
    """One basic block per stage of 64, 128, 256 and 512 channels, instance norm, 512-d features.

    Args:
        channels: image channels.
        size: image side in pixels; above 64 px and 128 px the stem pools by 2 and 4.
        num_classes: outputs of the linear head.
    """

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        widths = (STAGES[0], *STAGES)
        blocks = [
            Block(widths[stage], widths[stage + 1], pool=1 if stage == 0 else 2)
            for stage in range(len(STAGES))
        ]
        self.blocks = nn.Sequential(_stem(channels, size), *blocks)
        self.head = nn.Linear(STAGES[-1], num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Global average of the last feature map, ``(B, 512)``."""
        return self.blocks(images).mean((2, 3))

    def maps(self, images: Tensor, at: str) -> tuple[tuple[Tensor, ...], Tensor]:
        """Feature maps of stem and blocks, and last features, in one pass.

        Args:
            images: ``(B, channels, H, W)``.
            at: "conv" or "norm": after a block's last one; "relu" or "block": at its end (the
                stem's ReLU comes before its pool).

        Returns:
            Five maps ``(B, C, h, w)``, first to last, and :meth:`embed` of the images.
        """
        stem, *blocks = self.blocks
        layers, maps = list(stem.children()), list[Tensor]()
        kept = {"conv": 0, "norm": 1, "relu": 2}.get(at, len(layers) - 1)
        for number, layer in enumerate(layers):
            images = layer(images)
            if number == kept:
                maps.append(images)
        for block in cast(list[Block], blocks):
            kept_map, images = block.run(images, at)
            maps.append(kept_map)
        return tuple(maps), images.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``."""
        return self.head(self.embed(images))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw convolutions from N(0, 2 / (k * k * out)), as in the paper's code."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan), generator=generator)
