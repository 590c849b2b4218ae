"""Networks by name, and their seeded initialisation in place."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..common.checks import check_name
from ..common.errors import UserError
from .borrowed import borrow
from .convnet import ConvNet
from .resnet_ap import ResNetAP10

Builder = Callable[[int, int, int], nn.Module]  # (channels, size, num_classes)

NETWORKS: dict[str, Builder] = {
    "convnet3": lambda channels, size, classes: ConvNet(channels, size, classes, depth=3),
    "convnet4": lambda channels, size, classes: ConvNet(channels, size, classes, depth=4),
    "convnet5": lambda channels, size, classes: ConvNet(channels, size, classes, depth=5),
    "convnet6": lambda channels, size, classes: ConvNet(channels, size, classes, depth=6),
    "resnetap10": ResNetAP10,
    "resnet10": lambda *arguments: _build_torchvision("resnet10", *arguments),
    "resnet18": lambda *arguments: _build_torchvision("resnet18", *arguments),
    "densenet121": lambda *arguments: _build_torchvision("densenet121", *arguments),
    "densenet121-k12": lambda *arguments: _build_torchvision("densenet121_k12", *arguments),
    "efficientnet-b0": lambda *arguments: _build_torchvision("efficientnet", *arguments),
    "vit-tiny": lambda *arguments: _build_torchvision("vit_tiny", *arguments),
}
OWN = ":"  # in the name of a network of the user's own
# the features of an image must not depend on the other images: no batch norm
CONDENSING = ("convnet3", "convnet4", "convnet5", "convnet6", "resnetap10")


def _build_torchvision(name: str, channels: int, size: int, num_classes: int) -> nn.Module:
    from . import torchvision_nets  # torchvision is slow to import

    builder: Builder = getattr(torchvision_nets, name)
    return builder(channels, size, num_classes)


def check_network(name: str, among: tuple[str, ...] = tuple(NETWORKS)) -> None:
    """Raise UserError, with the nearest names, unless ``name`` is one of ``among``."""
    check_name("network", name, among)


def build_network(name: str, channels: int, size: int, num_classes: int) -> nn.Module:
    """Build the network ``name`` for ``(channels, size, size)`` images, on the CPU, float32.

    A network has ``embed(images)``, features before the head ``(B, D)``, and returns logits.

    Args:
        name: of NETWORKS, or ``package.module:name`` of the user's own (:func:`.borrowed.borrow`).
        channels: of the images.
        size: image side in pixels.
        num_classes: outputs.

    Raises:
        UserError: for an unknown name, or a size the network cannot take.
    """
    if OWN in name:
        return borrow(name, channels, size, num_classes)
    check_network(name)
    try:
        return NETWORKS[name](channels, size, num_classes)
    except ValueError as error:
        raise UserError(f"network {name}: {error}; choose another size or network") from error


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Redraw all parameters in place from ``generator`` (on the device of the parameters).

    Convolutions and linear layers get torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), norms 1
    and 0; a network's own ``initialise``, if it has one, runs last (ResNetAP-10, and those of
    :class:`.borrowed.Borrowed`, which draw all parameters).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            _uniform(module.weight, fan_in, generator)
            if module.bias is not None:
                _uniform(module.bias, fan_in, generator)
        elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d)):
            module.reset_parameters()
    own = getattr(network, "initialise", None)
    if own is not None:
        own(generator)


def _uniform(parameter: Tensor, fan_in: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(fan_in)
    parameter.uniform_(-bound, bound, generator=generator)
