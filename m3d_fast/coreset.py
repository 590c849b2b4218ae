"""Coresets: real images selected from each class at random, by herding or by k-center."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .common.errors import UserError
from .loaders import ClassSampler, RealImages

IntArray = npt.NDArray[np.int64]
Features = Callable[[Tensor], Tensor]  # uint8 images (n, C, H, W) -> (n, D)
# (real, ipc, seed, features) -> uint8 (num_classes, ipc, C, H, W); features() trains the network
# that some of them read
Choose = Callable[[RealImages, int, int, Callable[[], Features]], Tensor]

FEATURE_PIECE = 256  # images per forward pass


def random_images(real: RealImages, per_class: int, seed: int) -> Tensor:
    """Draw images at random, without replacement until a class is exhausted.

    The position of ``real`` in its own shuffled order does not change.

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``.
    """
    draw = random_indices(real, per_class, seed)
    classes = range(real.num_classes)
    return torch.stack(list(real.take_each(classes, [draw(c) for c in classes])))


def random_indices(real: RealImages, per_class: int, seed: int) -> Callable[[int], IntArray]:
    """A function that draws the indices of a class."""
    sampler = ClassSampler(real.class_sizes, seed)
    return lambda c: sampler.draw([c], per_class)[0]


def herding(real: RealImages, per_class: int, features: Features) -> Tensor:
    """Select images whose mean feature stays closest to the class mean (arXiv 1611.07725).

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``, in the order of selection.
    """
    return _select(real, per_class, features, _herd)


def k_center(real: RealImages, per_class: int, features: Features) -> Tensor:
    """Select images that cover the class (arXiv 1708.00489).

    The first image is the closest to the class mean; each further one is the farthest from those
    selected before.

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``, in the order of selection.
    """
    return _select(real, per_class, features, _cover)


def _select(
    real: RealImages, per_class: int, features: Features, select: Callable[[Tensor, int], list[int]]
) -> Tensor:
    if per_class > min(real.class_sizes):
        raise UserError(
            f"a coreset of {per_class} images per class was requested, but the smallest class has "
            f"{min(real.class_sizes)}"
        )
    chosen = [select(embedded, per_class) for embedded in _embed_classes(real, features)]
    return torch.stack(list(real.take_each(range(len(chosen)), chosen)))


def _embed_classes(real: RealImages, features: Features) -> Iterator[Tensor]:
    """Yield the features ``(n, D)`` of each class in turn, in one pass that keeps no images."""
    sizes = iter(real.class_sizes)
    missing, pieces = next(sizes), list[Tensor]()
    for images, _ in real.ordered(FEATURE_PIECE):
        with torch.no_grad():
            embedded = features(images)
        while len(embedded) >= missing > 0:
            yield torch.cat([*pieces, embedded[:missing]])
            embedded, pieces = embedded[missing:], []
            missing = next(sizes, 0)
        pieces.append(embedded)
        missing -= len(embedded)


def _herd(features: Tensor, count: int) -> list[int]:
    mean, total = features.mean(0), torch.zeros_like(features[0])
    chosen: list[int] = []
    for k in range(1, count + 1):
        distance = (mean - (total + features) / k).square().sum(1)
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
        total = total + features[chosen[-1]]
    return chosen


def _cover(features: Tensor, count: int) -> list[int]:
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = (features - features[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(1))
    return chosen


CORESETS: dict[str, Choose] = {
    "random": lambda real, ipc, seed, features: random_images(real, ipc, seed),
    "herding": lambda real, ipc, seed, features: herding(real, ipc, features()),
    "k-center": lambda real, ipc, seed, features: k_center(real, ipc, features()),
}
