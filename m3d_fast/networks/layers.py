"""Layers in the form that compiles best: fewest passes over the feature map, least kept of it."""

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm(nn.GroupNorm):
    """``GroupNorm(C, C)``, affine: each channel of each image is normalised separately.

    Compiled in bfloat16, mean and mean square come from one float32 pass, and the scale is kept per
    channel: torch.compile would else compute it anew for every pixel, but keeps an exponential that
    is used twice (64 images of 32 px, ConvNet-3 with every map kept, one core: 31 instead of 39
    ms). Otherwise it is torch's.

    Args:
        channels: of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, H, W)``, normalised over height and width."""
        # for float32 input the difference of two squares would lose precision
        if features.dtype != torch.bfloat16 or not torch.compiler.is_compiling():
            return super().forward(features)
        x = features.float()
        part = 1 / features[0, 0].numel()  # a product is faster than a division
        mean = x.sum((2, 3), keepdim=True) * part
        variance = (x.square().sum((2, 3), keepdim=True) * part - mean.square()).clamp_min(0)
        root = torch.exp(-0.5 * torch.log(variance + self.eps))
        scale = root * self.weight.float().view(-1, 1, 1)
        return (x * scale + (self.bias.float().view(-1, 1, 1) - mean * scale)).to(features.dtype)


class FirstConvolution(nn.Conv2d):
    """A convolution of images, of stride 1, that trains fast when compiled on a CPU.

    torch's weight gradient for images of one channel is half of a training step (ConvNet-3, 28 px,
    bfloat16: 171 ms for 64 images); as a product of the patches with the output's gradient it takes
    12. Frozen weights, other channels, GPUs and uncompiled networks have torch's convolution.
    """

    def forward(self, images: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, out_channels, H', W')``."""
        trained = self.weight.requires_grad and torch.compiler.is_compiling()
        if self.in_channels > 1 or images.is_cuda or not trained:
            return super().forward(images)
        (rows, columns), (top, left) = self.kernel_size, cast(tuple[int, int], self.padding)
        height = images.shape[2] + 2 * top - rows + 1
        width = images.shape[3] + 2 * left - columns + 1
        padded = F.pad(images[:, 0], (left, left, top, top))
        corners = itertools.product(range(rows), range(columns))
        shifted = [padded[:, i : i + height, j : j + width] for i, j in corners]
        patches = torch.stack(shifted, 3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class AveragePool(nn.Module):
    """Average of each ``side`` x ``side`` square of the feature map; rows left over are dropped.

    Compiled it is a reshape and a mean, whose backward needs no activation: torch's own keeps its
    input (ResNetAP-10 at 224 px: 21.5 instead of 12.3 MB per image). Otherwise it is torch's,
    which is up to 3.7 times faster where nothing is fused (CPU, channels last).

    Args:
        side: in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H // side, W // side)``."""
        side = self.side
        if not torch.compiler.is_compiling():
            return F.avg_pool2d(features, side)
        height, width = (length // side * side for length in features.shape[-2:])
        squares = features[..., :height, :width].unflatten(3, (-1, side)).unflatten(2, (-1, side))
        return squares.mean((3, 5))
