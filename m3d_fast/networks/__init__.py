"""Networks by name, and their seeded initialisation in place."""

import difflib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from .convnet import ConvNet
from .resnet_ap import ResNetAP10

Builder = Callable[[int, int, int], nn.Module]  # (channels, size, num_classes)

NETWORKS: dict[str, Builder] = {
    "convnet3": lambda channels, size, classes: ConvNet(channels, size, classes, depth=3),
    "convnet4": lambda channels, size, classes: ConvNet(channels, size, classes, depth=4),
    "convnet5": lambda channels, size, classes: ConvNet(channels, size, classes, depth=5),
    "resnetap10": ResNetAP10,
    "resnet10": lambda *arguments: _torchvision("resnet10", *arguments),
    "resnet18": lambda *arguments: _torchvision("resnet18", *arguments),
}
# features from several images at once must not depend on each other: no batch norm
CONDENSING = ("convnet3", "convnet4", "convnet5", "resnetap10")


def _torchvision(name: str, channels: int, size: int, num_classes: int) -> nn.Module:
    from . import torchvision_nets  # torchvision is slow to import

    builder: Builder = getattr(torchvision_nets, name)
    return builder(channels, size, num_classes)


def check_network(name: str, among: tuple[str, ...] = tuple(NETWORKS)) -> None:
    """Raise UserError, with the nearest names, if ``name`` is not one of ``among``."""
    if name not in among:
        near = difflib.get_close_matches(name, among, n=3, cutoff=0.4) or among
        raise UserError(f"network: expected one of {', '.join(near)}, got {name!r}")


def build_network(name: str, channels: int, size: int, num_classes: int) -> nn.Module:
    """The network ``name`` for ``(channels, size, size)`` images, on the CPU, float32.

    Every network has ``embed(images)``, features before the head ``(B, D)``, and returns logits.

    Raises:
        UserError: for an unknown name, or a size the network cannot take.
    """
    check_network(name)
    try:
        return NETWORKS[name](channels, size, num_classes)
    except ValueError as error:
        raise UserError(f"network {name}: {error}; choose another --size or --network") from error


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all parameters anew, in place, from ``generator`` (on the parameters' device).

    Convolutions and linear layers get torch's default law U(-1/sqrt(fan_in), 1/sqrt(fan_in)), norms
    1 and 0; a network's own ``initialise`` then has the last word (ResNetAP-10).
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
