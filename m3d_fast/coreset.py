"""Real images selected from each class at random, by herding or by k-center.

They are the baselines of an evaluation and the initial pixels of a condensation.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .common.errors import UserError
from .common.pinned import empty_pinned
from .common.seeds import derive_seed, generator
from .config import ResolvedConfig
from .loaders import ClassSampler, RealImages
from .synthetic import encode

IntArray = npt.NDArray[np.int64]
Features = Callable[[Tensor], Tensor]  # uint8 images (n, C, H, W) -> (n, D)

FEATURE_PIECE = 256  # images per forward pass


def initial_pixels(
    real: RealImages,
    config: ResolvedConfig,
    classes: range | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Synthetic images before the first step.

    Args:
        real: the training images.
        config: ``init``, ``ipc``, ``factor`` and ``seed`` are used.
        classes: all classes unless given.
        device: that of the result; of ``real`` unless given. Pixels on the host for a GPU are
            pinned.

    Returns:
        float32 ``(len(classes), ipc, channels, H, W)`` in [0, 1]; the pixels of a class depend
        neither on the other classes nor on their number.
    """
    classes = range(real.num_classes) if classes is None else classes
    shape = (len(classes), config.ipc, *real.image_shape)
    device = real.device if device is None else device
    pinned = device.type == "cpu" and real.device.type == "cuda"
    pixels = empty_pinned(shape) if pinned else torch.empty(shape, device=device)
    factor = config.factor if config.init == "mix" else 1
    draw = _random_indices(real, config.ipc * factor**2, derive_seed(config.seed, "coreset", 0))
    if config.init == "noise":
        for target, c in zip(pixels, classes, strict=True):
            stream = generator(config.seed, "noise", c, device=real.device)
            target.copy_(torch.rand(target.shape, generator=stream, device=real.device))
        return pixels
    chosen = real.take_each(classes, [draw(c) for c in classes])
    for target, images in zip(pixels, chosen, strict=True):
        target.copy_(encode(images[None].float() / 255, factor)[0])
    return pixels


def random_images(real: RealImages, per_class: int, seed: int) -> Tensor:
    """Draw images at random, without replacement until a class is exhausted.

    The position of ``real`` in its own shuffled order does not change.

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``.
    """
    draw = _random_indices(real, per_class, seed)
    classes = range(real.num_classes)
    return torch.stack(list(real.take_each(classes, [draw(c) for c in classes])))


def _random_indices(real: RealImages, per_class: int, seed: int) -> Callable[[int], IntArray]:
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
