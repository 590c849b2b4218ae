"""Differentiable siamese augmentation (DSA, arXiv 2102.08259), batched, on the device.

The images of a group share one draw. A group is a class's real and synthetic images during
condensation, and a single image during the training of an evaluation network.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .common.errors import UserError

GEOMETRIC = ("crop", "scale", "rotate")
OPERATIONS = ("flip", "color", *GEOMETRIC, "cutout")

CROP_RATIO = 0.125  # largest shift, as a fraction of the side
SCALE_RATIO = 1.2
ROTATE_DEGREES = 15.0
CUTOUT_RATIO = 0.5  # side of the square, as a fraction of the image's
FLIP_PROBABILITY = 0.5

# uniform numbers of one draw: flip, brightness, saturation, contrast, choice of the geometric
# operation, two each for crop and scale, rotation, two for cutout
UNIFORMS = 12
ONE_OF = "one:"  # before a strategy of which each draw applies a single operation


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """Split a strategy such as ``color_crop_cutout`` into its operations; "none" has none.

    After ``one:``, as in ``one:color_crop``, each draw applies one of them (DSA, arXiv 2102.08259,
    and DM, arXiv 2110.04181); the result begins with "one:".

    Raises:
        UserError: for an unknown operation.
    """
    if strategy == "none":
        return ()
    if strategy.startswith(ONE_OF):
        return (ONE_OF, *parse_strategy(strategy.removeprefix(ONE_OF)))
    names = tuple(strategy.split("_"))
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise UserError(
            f"augmentation {strategy!r}: expected operations among {', '.join(OPERATIONS)}, "
            f"got {', '.join(unknown)}; join names by '_', as in color_crop_cutout"
        )
    return names


def draw(groups: int, generator: torch.Generator) -> Tensor:
    """One draw per group, on the generator's device: ``(groups, UNIFORMS)`` float32 in [0, 1)."""
    return torch.rand(groups, UNIFORMS, generator=generator, device=generator.device)


def augment(images: Tensor, draws: Tensor, operations: tuple[str, ...]) -> Tensor:
    """Apply each group's draw to all images of the group; differentiable in ``images``.

    The order is flip, brightness, saturation, contrast, one of the requested geometric operations,
    cutout. Crop shifts by whole pixels, up to an eighth of the side, with zero padding; scale is by
    1/1.2 to 1.2 per axis; rotation by up to 15 degrees either way; cutout zeroes a square of half
    the side.

    Args:
        images: ``(G, n, C, H, W)`` float, normalised.
        draws: ``(G, UNIFORMS)`` from :func:`draw`; the same for real and synthetic images.
        operations: names from :func:`parse_strategy`.

    Returns:
        ``(G, n, C, H, W)``.
    """
    if operations[:1] == (ONE_OF,):
        return _apply_one(images, draws, operations[1:])
    if "flip" in operations:
        flipped = (draws[:, 0] < FLIP_PROBABILITY).view(-1, 1, 1, 1, 1)
        images = torch.where(flipped, images.flip(-1), images)
    if "color" in operations:
        images = _jitter_color(images, draws[:, 1:4])
    geometric = tuple(name for name in GEOMETRIC if name in operations)
    if geometric:
        images = warp(images, _choose_maps(draws[:, 4:10], geometric, images.shape[-2:]))
    if "cutout" in operations:
        images = images * _cutout_mask(draws[:, 10:12], images.shape[-2:])
    return images


def _apply_one(images: Tensor, draws: Tensor, operations: tuple[str, ...]) -> Tensor:
    """Apply one of the operations per group, chosen by the first number of the draw."""
    position = draws[:, 0] * len(operations)
    choice = position.long()
    geometric = tuple(name for name in GEOMETRIC if name in operations)
    chosen = {name: choice == number for number, name in enumerate(operations)}
    numbers = draws.clone()
    numbers[:, 0] = position - choice  # uniform, whatever the choice: a chosen flip flips half
    for number, name in enumerate(geometric):
        middle = (number + 0.5) / len(geometric)
        numbers[:, 4] = torch.where(chosen[name], middle, numbers[:, 4])
    result = images
    for names in (("flip",), ("color",), geometric, ("cutout",)):
        known = [chosen[name] for name in names if name in chosen]
        if known:
            mask = torch.stack(known).any(0).view(-1, 1, 1, 1, 1)
            result = torch.where(mask, augment(images, numbers, names), result)
    return result


def _jitter_color(images: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = u.view(-1, 3, 1, 1, 1, 1).unbind(1)
    images = images + (brightness - 0.5)
    if images.shape[2] > 1:  # saturation does not change grey images
        grey = images.mean(2, keepdim=True)
        images = torch.lerp(grey, images, 2 * saturation)
    mean = images.mean((2, 3, 4), keepdim=True)
    return torch.lerp(mean, images, contrast + 0.5)


def _choose_maps(u: Tensor, names: tuple[str, ...], shape: torch.Size) -> Tensor:
    """Affine maps from output to input, ``(G, 2, 3)``, normalised; one of ``names`` per group."""
    makers: dict[str, Callable[[], Tensor]] = {
        "crop": lambda: _shift_maps(u[:, 1:3], shape),
        "scale": lambda: _scale_maps(u[:, 3:5]),
        "rotate": lambda: _rotation_maps(u[:, 5], shape),
    }
    maps = torch.stack([makers[name]() for name in names], 1)  # (G, names, 2, 3)
    choice = (u[:, 0] * len(names)).long().view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    return maps.gather(1, choice).squeeze(1)


def _affine(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    return torch.stack([a, b, c, d, e, f], 1).view(-1, 2, 3)


def _shift_maps(u: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    zero, one = torch.zeros_like(u[:, 0]), torch.ones_like(u[:, 0])

    def pixels(u: Tensor, length: int) -> Tensor:  # whole pixels in [-limit, limit]
        limit = int(length * CROP_RATIO + 0.5)
        return torch.floor(u * (2 * limit + 1)) - limit

    return _affine(
        one,
        zero,
        2 * pixels(u[:, 0], width) / width,
        zero,
        one,
        2 * pixels(u[:, 1], height) / height,
    )


def _scale_maps(u: Tensor) -> Tensor:
    zero = torch.zeros_like(u[:, 0])
    factor = u * (SCALE_RATIO - 1 / SCALE_RATIO) + 1 / SCALE_RATIO
    return _affine(factor[:, 0], zero, zero, zero, factor[:, 1], zero)


def _rotation_maps(u: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    zero = torch.zeros_like(u)
    angle = (u - 0.5) * (2 * math.radians(ROTATE_DEGREES))
    cos, sin = angle.cos(), angle.sin()
    # the units of normalised coordinates differ between the axes of an oblong image
    return _affine(cos, -sin * (height / width), zero, sin * (width / height), cos, zero)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Resample ``(G, n, C, H, W)`` bilinearly by one map ``(2, 3)`` per group, zero outside."""
    groups, count, channels, height, width = images.shape
    flat = images.reshape(groups, count * channels, height, width)
    grid = F.affine_grid(maps, [groups, 1, height, width], align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view_as(images)


def _cutout_mask(u: Tensor, shape: torch.Size) -> Tensor:
    """0 in a square around a uniformly drawn pixel, clipped at the border; 1 elsewhere."""

    def outside(u: Tensor, length: int) -> Tensor:
        size = int(length * CUTOUT_RATIO + 0.5)
        first = torch.floor(u * length) - size // 2
        position = torch.arange(length, device=u.device)
        return (position < first[:, None]) | (position >= first[:, None] + size)

    rows, columns = outside(u[:, 0], shape[0]), outside(u[:, 1], shape[1])
    keep = rows[:, :, None] | columns[:, None, :]
    return keep[:, None, None].to(torch.float32)


# the ImageNet protocol: RandomResizedCrop, colour jitter and AlexNet's lighting noise
CROP_AREA = (0.5, 1.0)
WIDE_CROP_AREA = (0.08, 1.0)  # that of training on ImageNet, also torchvision's default
CROP_ASPECT = (3 / 4, 4 / 3)
JITTER = 0.4
LIGHTING = 0.1
RGB_EIGENVALUES = (0.2175, 0.0188, 0.0045)
RGB_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
CROP_UNIFORMS = 5  # per image: crop and flip
IMAGENET_UNIFORMS, IMAGENET_NORMALS = CROP_UNIFORMS + 3, 3  # and jitter; lighting


def augment_imagenet(images: Tensor, uniforms: Tensor, normals: Tensor) -> Tensor:
    """Apply the training augmentation of ImageNet, one draw per image (arXiv 2205.14959).

    RandomResizedCrop (area 0.5 to 1), flip, jitter of brightness, contrast and saturation by 0.4,
    lighting noise of 0.1.

    Args:
        images: ``(B, 3, H, W)`` float in [0, 1].
        uniforms: uniform in [0, 1), ``(B, IMAGENET_UNIFORMS)``.
        normals: standard normal, ``(B, IMAGENET_NORMALS)``.

    Returns:
        ``(B, 3, H, W)``.
    """
    u = uniforms
    images = _crop_and_resize(images, u, CROP_AREA)
    brightness, contrast, saturation = (1 + JITTER * (2 * u[:, 5:8, None, None, None] - 1)).unbind(
        1
    )
    images = images * brightness
    images = torch.lerp(_luminance(images).mean((2, 3), keepdim=True), images, contrast)
    images = torch.lerp(_luminance(images), images, saturation)
    return images + _light(normals)[:, :, None, None]


def augment_resized_crop(images: Tensor, uniforms: Tensor) -> Tensor:
    """Crop 8 to 100 % of the area at random, resize the crop to the image's size, and flip half.

    Args:
        images: ``(B, C, H, W)`` float.
        uniforms: uniform in [0, 1), ``(B, CROP_UNIFORMS)``.

    Returns:
        ``(B, C, H, W)``.
    """
    return _crop_and_resize(images, uniforms, WIDE_CROP_AREA)


def _crop_and_resize(images: Tensor, u: Tensor, areas: tuple[float, float]) -> Tensor:
    """RandomResizedCrop and a flip, one draw per image: ``u[:, :CROP_UNIFORMS]``."""
    low, high = areas
    area = low + (high - low) * u[:, 0]
    aspect = torch.exp(
        math.log(CROP_ASPECT[0]) + math.log(CROP_ASPECT[1] / CROP_ASPECT[0]) * u[:, 1]
    )
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(u[:, 2] < FLIP_PROBABILITY, -1.0, 1.0)
    zero = torch.zeros_like(area)
    left, top = (2 * u[:, 3] - 1) * (1 - width), (2 * u[:, 4] - 1) * (1 - height)
    maps = _affine(width * flip, zero, left, zero, height, top)
    return warp(images[:, None], maps)[:, 0]


def _luminance(images: Tensor) -> Tensor:
    return _combine(images, (0.299, 0.587, 0.114), dim=1)


def _light(normals: Tensor) -> Tensor:
    """AlexNet's noise ``(B, 3)``: along the principal axes of ImageNet's colours."""
    axes = [
        [LIGHTING * value * entry for value, entry in zip(RGB_EIGENVALUES, row, strict=True)]
        for row in RGB_EIGENVECTORS
    ]
    return torch.cat([_combine(normals, row, dim=1) for row in axes], 1)


def _combine(parts: Tensor, weights: Sequence[float], dim: int) -> Tensor:
    """Weighted sum along ``dim``, kept; a tensor of weights would have to come from the host."""
    first, *rest = parts.split(1, dim)
    total = first * weights[0]
    for part, weight in zip(rest, weights[1:], strict=True):
        total = torch.add(total, part, alpha=weight)
    return total


CUTMIX_UNIFORMS = 4  # whether to mix, the box's size, and its centre


def mixed_cross_entropy(logits: Tensor, labels: Tensor, pasted: Tensor, kept: Tensor) -> Tensor:
    """Mean cross-entropy of images mixed by :func:`cutmix`, whose results the others are.

    Args:
        logits: ``(B, classes)`` float32.
        labels: of the images, ``(B,)`` int64.
        pasted: of the boxes, ``(B,)`` int64.
        kept: share of each image that is kept, ``()``.
    """
    loss = kept * F.cross_entropy(logits, labels)
    return loss + (1 - kept) * F.cross_entropy(logits, pasted)


def cutmix(
    images: Tensor, labels: Tensor, probability: float, uniforms: Tensor, order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste a random box of a shuffled batch into the batch (arXiv 1905.04899, beta 1).

    Args:
        images: ``(B, C, H, W)``.
        labels: ``(B,)`` int64.
        probability: of mixing the batch.
        uniforms: uniform in [0, 1), ``(CUTMIX_UNIFORMS,)``.
        order: a permutation of the batch, int64 ``(B,)``.

    Returns:
        The images, the labels of the pasted boxes ``(B,)``, and the share of each image that is
        kept, ``()``.
    """
    height, width = images.shape[-2:]
    device, u = images.device, uniforms
    half = (1 - u[1]).sqrt() / 2  # half the box's side, in an image of side 1; lambda is u[1]
    rows = torch.arange(height, device=device) + 0.5
    columns = torch.arange(width, device=device) + 0.5
    inside_rows = (rows / height - u[2]).abs() < half
    inside_columns = (columns / width - u[3]).abs() < half
    box = inside_rows[:, None] & inside_columns & (u[0] < probability)
    return torch.where(box, images[order], images), labels[order], 1 - box.float().mean()
