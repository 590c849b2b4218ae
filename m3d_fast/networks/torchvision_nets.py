"""torchvision's networks, for cross-architecture evaluation, with stems that fit the image size."""

import math
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torchvision.models import DenseNet, VisionTransformer, efficientnet_b0
from torchvision.models.resnet import BasicBlock, ResNet

from .borrowed import Borrowed

SMALLEST = 16  # px; below, the last feature map would be a single pixel
LOW_RESOLUTION = 64  # px, up to which a stem is a 3x3 convolution of stride 1 without pooling


def check_size(size: int) -> None:
    """Raise ValueError if images of ``size`` pixels are too small."""
    if size < SMALLEST:
        raise ValueError(f"expected a size of at least {SMALLEST} px, got {size} px")


class EvaluationResNet(ResNet):
    """torchvision's ResNet; up to 64 px its stem is a 3x3 convolution without pooling.

    Args:
        layers: basic blocks per stage.
        channels: image channels.
        size: image side in pixels.
        num_classes: outputs of the linear head.
    """

    def __init__(self, layers: list[int], channels: int, size: int, num_classes: int) -> None:
        check_size(size)
        super().__init__(BasicBlock, layers, num_classes=num_classes)
        if size <= LOW_RESOLUTION:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif channels != 3:
            self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)

    def embed(self, images: Tensor) -> Tensor:
        """Global average of the last feature map, ``(B, 512)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``."""
        return self.fc(self.embed(images))


def resnet10(channels: int, size: int, num_classes: int) -> nn.Module:
    """ResNet with one basic block per stage."""
    return EvaluationResNet([1, 1, 1, 1], channels, size, num_classes)


def resnet18(channels: int, size: int, num_classes: int) -> nn.Module:
    """ResNet with two basic blocks per stage."""
    return EvaluationResNet([2, 2, 2, 2], channels, size, num_classes)


def densenet121(channels: int, size: int, num_classes: int) -> nn.Module:
    """DenseNet-121 (arXiv 1608.06993), growth 32; up to 64 px its stem is a 3x3 convolution."""
    return _borrow(size, lambda: _build_densenet(channels, size, num_classes))


def densenet121_k12(channels: int, size: int, num_classes: int) -> nn.Module:
    """The "DenseNet-121" of the condensation literature: the same blocks, growth 12, 24 channels.

    Its stem is one 3x3 convolution of stride 1, so it takes small images alone.
    """
    if size > LOW_RESOLUTION:
        raise ValueError(
            f"expected a size of at most {LOW_RESOLUTION} px (densenet121 takes larger ones), "
            f"got {size} px"
        )

    def build() -> nn.Module:
        network = DenseNet(12, (6, 12, 24, 16), num_init_features=24, num_classes=num_classes)
        _replace_stem(network, channels, 24)
        # a block begins with norm and ReLU
        network.features.norm0, network.features.relu0 = nn.Identity(), nn.Identity()
        return network

    return _borrow(size, build)


def _build_densenet(channels: int, size: int, num_classes: int) -> nn.Module:
    network = DenseNet(num_classes=num_classes)
    if size <= LOW_RESOLUTION:
        _replace_stem(network, channels, 64)
    elif channels != 3:
        first = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(first.weight)
        network.features.conv0 = first
    return network


def _replace_stem(network: DenseNet, channels: int, width: int) -> None:
    first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(first.weight)
    network.features.conv0, network.features.pool0 = first, nn.Identity()


def efficientnet(channels: int, size: int, num_classes: int) -> nn.Module:
    """EfficientNet-B0 (arXiv 1905.11946), of whose five strides the first ones may be left out.

    They are left out until the last feature map has 4 x 4 pixels: three of them at 16 px, two at
    32 px, one at 64 px, none from 112 px on.
    """

    def build() -> nn.Module:
        network = efficientnet_b0(num_classes=num_classes)
        if channels != 3:
            first = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out")
            network.features[0][0] = first
        convolutions = [m for m in network.features.modules() if isinstance(m, nn.Conv2d)]
        strided = [layer for layer in convolutions if layer.stride == (2, 2)]
        while math.ceil(size / 2 ** len(strided)) < 4:
            strided.pop(0).stride = (1, 1)
        return network

    return _borrow(size, build)


def vit_tiny(channels: int, size: int, num_classes: int) -> nn.Module:
    """A vision transformer of 192 channels, 12 layers and 3 heads (DeiT-Ti, arXiv 2012.12877).

    Its patches have a side of 16, 8, 4 or 2 px: the largest of which there are 7 or more in a row.
    """
    patches = [side for side in (16, 8, 4, 2) if size % side == 0 and size // side >= 7]
    if size >= SMALLEST and not patches:
        raise ValueError(f"expected an even size, got {size} px")

    def build() -> nn.Module:
        network = VisionTransformer(size, patches[0], 12, 3, 192, 768, num_classes=num_classes)
        if channels != 3:
            side = patches[0]
            first = nn.Conv2d(channels, 192, side, stride=side)
            nn.init.trunc_normal_(first.weight, std=math.sqrt(1 / (channels * side**2)))
            nn.init.zeros_(cast(Tensor, first.bias))
            network.conv_proj = first
        return network

    return _borrow(size, build)


def _borrow(size: int, build: Callable[[], nn.Module]) -> nn.Module:
    check_size(size)
    return Borrowed(build)
