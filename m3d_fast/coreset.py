"""Real images chosen from each class: random, herding, k-center; baselines and initialisation."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .common.errors import UserError
from .common.seeds import derived_seed, generator
from .config import ResolvedConfig
from .loaders import ClassSampler, RealImages
from .synthetic import encode

IntArray = npt.NDArray[np.int64]
Features = Callable[[Tensor], Tensor]  # uint8 images (n, C, H, W) -> (n, D)

FEATURE_PIECE = 256  # images whose features are computed at once


def initial_pixels(
    real: RealImages,
    config: ResolvedConfig,
    classes: range | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Synthetic images before the first step, of all classes or of those named.

    They are kept on ``device``: that of ``real`` unless given; on the host, for a GPU, pinned.

    Returns:
        float32 ``(len(classes), ipc, channels, H, W)`` in [0, 1]; those of a class depend neither
        on the other classes nor on their number.
    """
    classes = range(real.num_classes) if classes is None else classes
    shape = (len(classes), config.ipc, *real.image_shape)
    device = real.device if device is None else device
    pinned = device.type == "cpu" and real.device.type == "cuda"
    pixels = torch.empty(shape, dtype=torch.float32, device=device, pin_memory=pinned)
    factor = config.factor if config.init == "mix" else 1
    chosen = _random_indices(real, config.ipc * factor**2, derived_seed(config.seed, "coreset", 0))
    for target, c in zip(pixels, classes, strict=True):
        if config.init == "noise":
            stream = generator(config.seed, "noise", c, device=real.device)
            target.copy_(torch.rand(target.shape, generator=stream, device=real.device))
        else:
            images = real.take(c, chosen(c)).float() / 255
            target.copy_(encode(images[None], factor)[0])
    return pixels


def random_images(real: RealImages, per_class: int, seed: int) -> Tensor:
    """A seeded random choice, without replacement until a class is used up.

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``; ``real`` goes on as if nothing had been drawn.
    """
    chosen = _random_indices(real, per_class, seed)
    return torch.stack([real.take(c, chosen(c)) for c in range(real.num_classes)])


def _random_indices(real: RealImages, per_class: int, seed: int) -> Callable[[int], IntArray]:
    sampler = ClassSampler(real.class_sizes, seed)
    return lambda c: sampler.draw([c], per_class)[0]


def herding(real: RealImages, per_class: int, features: Features) -> Tensor:
    """Images whose running mean feature stays closest to the class's (arXiv 1611.07725).

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``, in the order chosen.
    """
    return _select(real, per_class, features, _herd)


def k_center(real: RealImages, per_class: int, features: Features) -> Tensor:
    """Images that cover the class: each next one is farthest from those chosen (arXiv 1708.00489).

    Returns:
        uint8 ``(num_classes, per_class, C, H, W)``, in the order chosen.
    """
    return _select(real, per_class, features, _cover)


def _select(
    real: RealImages, per_class: int, features: Features, rule: Callable[[Tensor, int], list[int]]
) -> Tensor:
    if per_class > min(real.class_sizes):
        raise UserError(
            f"a coreset of {per_class} images per class was asked for, but the smallest class has "
            f"{min(real.class_sizes)}"
        )
    chosen = [rule(embedded, per_class) for embedded in _embedded_classes(real, features)]
    return torch.stack([real.take(c, indices) for c, indices in enumerate(chosen)])


def _embedded_classes(real: RealImages, features: Features) -> Iterator[Tensor]:
    """Features ``(n, D)`` of each class in turn, in one pass over the set; images are not kept."""
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
