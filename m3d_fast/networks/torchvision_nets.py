"""ResNet-10 and ResNet-18 with batch norm, from torchvision, for cross-architecture evaluation."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


class EvaluationResNet(ResNet):
    """torchvision's ResNet; up to 64 px its stem is a 3x3 convolution without pooling.

    Args:
        layers: basic blocks per stage.
        channels: image channels.
        size: image side in pixels.
        num_classes: outputs of the linear head.
    """

    def __init__(self, layers: list[int], channels: int, size: int, num_classes: int) -> None:
        super().__init__(BasicBlock, layers, num_classes=num_classes)
        if size <= 64:
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
