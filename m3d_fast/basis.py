"""A learned basis that a group of classes shares: more training images from the same numbers."""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.errors import UserError

# stored numbers are in [0, 1]; those of 0 and 1 are these, up and down: a component is at most as
# large as a pixel, a coefficient within four standard deviations of the initial ones
COMPONENT_RANGE, COEFFICIENT_RANGE = 1.0, 4.0
# share of the learning rate with which mean and components move: all of them add up in every image,
# where a coefficient moves one image along one component
BASIS_RATE = 0.1


@dataclass(frozen=True)
class Basis:
    """Decodes images as ``mean + coefficients @ components``, of ``side`` px, enlarged.

    Mean and components are those of a group of consecutive classes, coefficients of each image. All
    are learned, in place of pixels and in the same room: a class stores its coefficients and its
    share of the group's basis in ``(ipc, channels, H, W)`` numbers in [0, 1]. Bases shared by
    classes are those of "Remember the Past" (arXiv 2206.02916) and HaBa (arXiv 2210.16774); how
    they are learned here is ours.

    Attributes:
        images: decoded images of a class.
        components: of the basis.
        side: of its images, in pixels.
        group: classes that share it.
        shape: ``(ipc, channels, H, W)`` of the numbers of a class.
    """

    images: int
    components: int
    side: int
    group: int
    shape: tuple[int, int, int, int]

    @classmethod
    def fit(cls, images: int, side: int, group: int, shape: tuple[int, int, int, int]) -> "Basis":
        """The most components that fit into the numbers of a group.

        Raises:
            UserError: if not a single one fits.
        """
        one = shape[1] * side**2  # numbers of a component
        room = group * (math.prod(shape) - 1) - one  # 1: shares are rounded up
        components = min(room // (group * images + one), group * images - 1, one)
        if components < 1:
            raise UserError(
                f"decoded: {images} images of each of {group} classes and a basis of {side} px do "
                f"not fit into the numbers of {shape[0]} per class; expected fewer"
            )
        return cls(images, components, side, group, shape)

    def decode(self, stored: Tensor) -> Tensor:
        """Images ``(k, images, channels, H, W)`` in [0, 1] of the numbers of whole groups.

        Args:
            stored: ``(k, *shape)`` in [0, 1]; the result is differentiable in it.
        """
        mean, components, coefficients = self._split(stored)
        pixels = (coefficients @ components + mean).view(-1, self.side, self.side)
        _, channels, *sides = self.shape
        rows, columns = (enlarge(self.side, side, stored.device) for side in sides)
        return (rows @ pixels @ columns.T).clamp(0, 1).view(-1, self.images, channels, *sides)

    def encode(self, images: Tensor) -> Tensor:
        """Numbers of whole groups that decode to about ``images``: principal components.

        Args:
            images: ``(k, images, channels, H, W)`` float32 in [0, 1], k a multiple of the group.

        Returns:
            ``(k, *shape)``; numbers that are not used are constants.
        """
        stored = torch.full((len(images), *self.shape), 0.5, device=images.device)
        small = F.interpolate(images.flatten(0, 1), (self.side, self.side), mode="area")
        for numbers, pixels in zip(
            stored.split(self.group), small.flatten(1).split(self.group * self.images), strict=True
        ):
            mean = pixels.mean(0)
            left, sizes, right = torch.linalg.svd((pixels - mean).double(), full_matrices=False)
            kept, scale = slice(self.components), math.sqrt(len(pixels))
            components = right[kept] * sizes[kept, None] / scale
            basis = torch.cat([mean[None], _pack(components.to(mean), COMPONENT_RANGE)])
            coefficients = _pack((left[:, kept] * scale).to(mean), COEFFICIENT_RANGE)
            # a view of the numbers, written in place
            flat = numbers.flatten(1)
            shares = torch.zeros(self.group * self.share, device=images.device)
            shares[: basis.numel()] = basis.flatten()
            flat[:, : self.share] = shares.view(self.group, -1)
            end = self.share + self.images * self.components
            flat[:, self.share : end] = coefficients.reshape(self.group, -1)
        return stored.clamp_(0, 1)

    @property
    def _one(self) -> int:
        return self.shape[1] * self.side**2

    @property
    def share(self) -> int:
        """Numbers of the basis that a class of the group stores."""
        return -(-(1 + self.components) * self._one // self.group)

    def _split(self, stored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``(g, 1, P)``, components ``(g, K, P)`` and coefficients ``(g, n, K)`` of groups."""
        flat = stored.flatten(1).unflatten(0, (-1, self.group))
        count, share = self.components, self.share
        basis = flat[:, :, :share].flatten(1)[:, : (1 + count) * self._one]
        basis = basis.unflatten(1, (1 + count, self._one))
        coefficients = flat[:, :, share : share + self.images * count]
        coefficients = coefficients.unflatten(2, (self.images, count)).flatten(1, 2)
        return (
            basis[:, :1],
            _unpack(basis[:, 1:], COMPONENT_RANGE),
            _unpack(coefficients, COEFFICIENT_RANGE),
        )


def rates_of_numbers(basis: Basis | None, device: torch.device) -> Tensor:
    """Share of the learning rate with which the numbers of a class move.

    Returns:
        Float32, that of each number ``(ipc, channels, H, W)`` of a basis, one ``()`` of tiles.
    """
    if basis is None:
        return torch.ones((), device=device)
    rates = torch.ones(basis.shape, device=device)
    rates.view(-1)[: basis.share] = BASIS_RATE
    return rates


def _pack(values: Tensor, limit: float) -> Tensor:
    return values / (2 * limit) + 0.5


def _unpack(stored: Tensor, limit: float) -> Tensor:
    return (stored - 0.5) * (2 * limit)


@cache
def enlarge(small: int, large: int, device: torch.device) -> Tensor:
    """``(large, small)``: the cosine series of ``small`` samples at ``large`` points.

    Kept on the device: a CUDA graph cannot copy it there while it is captured.
    """
    waves = torch.arange(small, dtype=torch.float64)

    def cosines(count: int) -> Tensor:
        points = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        return torch.cos(math.pi * points[:, None] * waves)

    halved = torch.where(waves == 0, 1.0, 2.0)
    return (cosines(large) * halved @ cosines(small).T / small).float().to(device)
