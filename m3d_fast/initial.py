"""What a condensation starts from: real images, as tiles or one each, noise, or another set."""

from itertools import islice

import torch
from torch import Tensor

from .common.pinned import empty_pinned
from .common.seeds import derive_seed, generator
from .config import ResolvedConfig
from .coreset import random_indices
from .loaders import RealImages
from .starting_set import StartingSet, is_path
from .synthetic import encode


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
        float32 ``(len(classes), ipc, channels, H, W)`` in [0, 1]: of tiles pixels, of a basis the
        numbers that it decodes. Those of a class depend on no class outside its group.

    Raises:
        UserError: if ``init`` is a set that cannot be read or is not of this run's shape.
    """
    classes = range(real.num_classes) if classes is None else classes
    shape = (len(classes), config.ipc, *real.image_shape)
    device = real.device if device is None else device
    pinned = device.type == "cpu" and real.device.type == "cuda"
    pixels = empty_pinned(shape) if pinned else torch.empty(shape, device=device)
    basis = config.build_basis(real.num_classes, real.image_shape)
    if is_path(config.init):
        start = StartingSet.load(config.init)
        start.check((real.num_classes, *shape[1:]), config.factor, basis)
        return pixels.copy_(start.pixels[classes.start : classes.stop])
    factor = config.factor if config.init == "mix" and basis is None else 1
    count = config.ipc * factor**2 if basis is None else basis.images
    draw = random_indices(real, count, derive_seed(config.seed, "coreset", 0))
    if config.init == "noise":
        for target, c in zip(pixels, classes, strict=True):
            stream = generator(config.seed, "noise", c, device=real.device)
            target.copy_(torch.rand(target.shape, generator=stream, device=real.device))
        return pixels
    chosen = real.take_each(classes, [draw(c) for c in classes])
    if basis is not None:
        for first in range(0, len(classes), basis.group):
            group = torch.stack(list(islice(chosen, basis.group))).float() / 255
            pixels[first : first + basis.group] = basis.encode(group)
        return pixels
    for target, images in zip(pixels, chosen, strict=True):
        target.copy_(encode(images[None].float() / 255, factor)[0])
    return pixels


def initial_images(real: RealImages, config: ResolvedConfig) -> Tensor:
    """What a run starts from as its condensed set is read: a basis decoded, tiles not.

    Returns:
        float32 ``(num_classes, n, channels, H, W)`` in [0, 1].
    """
    pixels = initial_pixels(real, config)
    basis = config.build_basis(real.num_classes, real.image_shape)
    return pixels if basis is None else basis.decode(pixels)
