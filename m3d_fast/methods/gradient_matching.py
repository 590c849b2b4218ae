"""Gradient matching: DC (arXiv 2006.05929), DSA (2102.08259), IDC (2205.14959)."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.linalg import vector_norm

from ..common.checks import check_name
from ..presets import Preset, Setting, dc_preset, dsa_preset, idc_preset
from .protocol import Method, Network, Reading, Scope, total

COSINE_EPS = 1e-6  # as in DC's public code: rows without gradient are at distance 1
IDC_DISTANCES = ("l1", "mse")
# the others, ImageNet, MNIST and Fashion-MNIST among them, are matched in L1
IDC_MSE_DATASETS = ("cifar10", "cifar100", "svhn")


def weight_gradients(
    module: nn.Module, names: list[str], images: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    """Gradient of every class's mean cross-entropy in some weights, differentiable in the images.

    Args:
        module: the network.
        names: of the weights.
        images: ``(k, n, channels, H, W)``.
        labels: int64 ``(k,)``.

    Returns:
        Per weight, ``(k, *shape)``.
    """
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def mean_error(weights: dict[str, Tensor], images: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(module, fixed | weights, (images,))
        return F.cross_entropy(logits, label.expand(len(images)))

    weights = {name: fixed[name] for name in names}
    gradients = vmap(grad(mean_error), (None, 0, 0))(weights, images, labels)
    return tuple(gradients[name] for name in names)


@dataclass(frozen=True)
class GradientMatching(Method):
    """Distance of the gradients in the network's weights, real against synthetic."""

    float32_only: ClassVar[bool] = True
    matched: ClassVar[tuple[int, ...]]  # dimensions of the weights whose gradients are matched

    def probe(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """Gradient of the classes' mean cross-entropy, in convolutions and linear layers."""
        parameters = network.module.named_parameters()
        names = [name for name, weight in parameters if weight.ndim in self.matched]
        return Reading(mean=weight_gradients(network.module, names, images, labels))

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance, summed over layers."""
        pairs = zip(real.mean, synthetic.mean, strict=True)
        layers = [self.compare(x, y) for x, y in pairs]
        return total([sum(layers[1:], layers[0])])

    @abstractmethod
    def compare(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Distance ``(k,)`` of gradients ``(k, out, ...)`` of one layer."""


@dataclass(frozen=True)
class DC(GradientMatching):
    """1 - cosine of every output row's gradient, summed over rows and layers (equation 9).

    Biases and norms are left out, as in the public code.
    """

    terms: ClassVar[tuple[str, ...]] = ("cosine",)
    scope: ClassVar[Scope] = "set"
    networks_from: ClassVar[str] = "synthetic"
    matched: ClassVar[tuple[int, ...]] = (2, 4)

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return dc_preset(setting)

    def compare(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Sum of 1 - cosine over the output rows of a layer."""
        x, y = real.flatten(2), synthetic.flatten(2)
        norms = vector_norm(x, dim=2) * vector_norm(y, dim=2)
        return (1 - (x * y).sum(2) / (norms + COSINE_EPS)).sum(1)


@dataclass(frozen=True)
class DSA(DC):
    """DC with augmentation, the same for real and synthetic images."""

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return dsa_preset(setting)


@dataclass(frozen=True)
class IDC(GradientMatching):
    """L1 or squared distance of the convolutions' gradients, under networks trained on real images.

    Both are sums over the elements, as in the public code.

    Attributes:
        distance: "l1" or "mse"; by default that of the paper's code for the data set.
    """

    terms: ClassVar[tuple[str, ...]] = ("gradient",)
    networks_from: ClassVar[str] = "real"
    matched: ClassVar[tuple[int, ...]] = (4,)
    max_synthetic: ClassVar[int] = 128

    distance: str = "l1"

    def __post_init__(self) -> None:
        check_name("distance", self.distance, IDC_DISTANCES)

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return idc_preset(setting)

    @classmethod
    def options_for(cls, setting: Setting) -> Mapping[str, Any]:
        """The published distance."""
        return {"distance": "mse" if setting.dataset in IDC_MSE_DATASETS else "l1"}

    def compare(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Sum of the absolute or squared differences of a layer."""
        difference = (real - synthetic).flatten(1)
        size = difference.abs() if self.distance == "l1" else difference.square()
        return size.sum(1)
