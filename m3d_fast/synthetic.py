"""The condensed set: its pixels, their decoding into training images, its file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image, fromarray
from torch import Tensor

from .common.errors import UserError
from .common.tensors import read_tensors, write_tensors

FORMAT = "m3d_fast synthetic set"
MIN_TILE = 4  # pixels


def check_factor(factor: int, size: int) -> None:
    """Raise UserError unless ``factor`` cuts ``size`` pixels into tiles of at least 4 px."""
    if factor < 1:
        raise UserError(f"factor: expected a whole number >= 1, got {factor}")
    if size // factor < MIN_TILE:
        raise UserError(
            f"factor {factor} cuts {size} px into tiles of {size // factor} px; expected tiles of "
            f"at least {MIN_TILE} px, so a factor of at most {size // MIN_TILE}"
        )


def tile_edges(side: int, factor: int) -> list[tuple[int, int]]:
    """Start and end of each tile along one side; sizes differ by one pixel (75, 75, 74)."""
    small, remainder = divmod(side, factor)
    sizes = [small + (tile < remainder) for tile in range(factor)]
    starts = [sum(sizes[:tile]) for tile in range(factor)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def decode(pixels: Tensor, factor: int) -> Tensor:
    """Cut every image into ``factor**2`` tiles, each bilinearly up-sampled to the full size.

    This is the multi-formation of IDC (arXiv 2205.14959); it is differentiable.

    Args:
        pixels: ``(..., n, C, H, W)`` float.
        factor: tiles per side.

    Returns:
        ``(..., n * factor**2, C, H, W)``; the tiles of an image are in row-major order.
    """
    if factor == 1:
        return pixels
    *lead, count, channels, height, width = pixels.shape
    flat = pixels.reshape(-1, channels, height, width)
    tiles = [
        F.interpolate(flat[:, :, top:bottom, left:right], (height, width), mode="bilinear")
        for top, bottom in tile_edges(height, factor)
        for left, right in tile_edges(width, factor)
    ]
    return torch.stack(tiles, 1).view(*lead, count * factor**2, channels, height, width)


class StoredImages:
    """Images kept encoded, as tiles or bytes, and decoded when they are indexed.

    Args:
        pixels: ``(n, C, H, W)``, float in [0, 1] or uint8.
        factor: tiles per side of every image.
    """

    def __init__(self, pixels: Tensor, factor: int = 1) -> None:
        self._pixels, self._factor = pixels, factor

    def __len__(self) -> int:
        return len(self._pixels) * self._factor**2

    def __getitem__(self, indices: Tensor) -> Tensor:
        """``decode(pixels, factor)[indices]``, float in [0, 1]; ``indices`` int64 ``(m,)``."""
        tiles = self._factor**2
        chosen = self._pixels[indices // tiles]
        images = chosen if chosen.is_floating_point() else chosen.float() / 255
        if tiles == 1:
            return images
        # every tile of the chosen images, then one each: without waiting for the device
        decoded = decode(images, self._factor).unflatten(0, (len(images), tiles))
        return decoded[torch.arange(len(images), device=indices.device), indices % tiles]

    def decode(self) -> Tensor:
        """All images, float in [0, 1], ``(n, C, H, W)``."""
        pixels = self._pixels if self._pixels.is_floating_point() else self._pixels.float() / 255
        return decode(pixels, self._factor)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of :meth:`decode`."""
        return self._pixels.numel() * self._factor**2 * 4


def label_images(pixels: Tensor, factor: int = 1) -> tuple[StoredImages, Tensor]:
    """Images ``(C, n, channels, H, W)``, float or uint8, as a flat training set with labels."""
    classes, count = pixels.shape[:2]
    labels = torch.arange(classes, device=pixels.device).repeat_interleave(count * factor**2)
    return StoredImages(pixels.flatten(0, 1), factor), labels


def encode(images: Tensor, factor: int) -> Tensor:
    """Shrink groups of ``factor**2`` images, by averaging, into the tiles of one image.

    This is the initialisation "mix".

    Args:
        images: ``(..., n * factor**2, C, H, W)`` float.
        factor: tiles per side.

    Returns:
        ``(..., n, C, H, W)``.
    """
    *lead, count, channels, height, width = images.shape
    grouped = images.reshape(-1, factor**2, channels, height, width)
    pixels = torch.empty_like(grouped[:, 0])
    corners = product(tile_edges(height, factor), tile_edges(width, factor))
    for tile, ((top, bottom), (left, right)) in enumerate(corners):
        pixels[:, :, top:bottom, left:right] = F.interpolate(
            grouped[:, tile], (bottom - top, right - left), mode="area"
        )
    return pixels.view(*lead, count // factor**2, channels, height, width)


@dataclass(frozen=True)
class SyntheticSet:
    """A condensed data set.

    Args:
        images: ``(num_classes * ipc, C, H, W)`` float32 in [0, 1], sorted by class.
        labels: ``(num_classes * ipc,)`` int64.
        class_names: one name per class.
        factor: tiles per side of every image.
        mean, std: per channel, for the normalisation before a network.
        info: origin of the set: dataset, method, iterations, seed, version.
    """

    images: Tensor
    labels: Tensor
    class_names: Sequence[str]
    factor: int
    mean: Sequence[float]
    std: Sequence[float]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class as stored, before decoding."""
        return len(self.images) // self.num_classes

    def check_classes(self, real: Sequence[str], subject: str) -> None:
        """Raise UserError, about ``subject``, unless the ``real`` classes are those of the set."""
        condensed = tuple(self.class_names)
        if tuple(real) != condensed:
            raise UserError(
                f"{subject} has {len(condensed)} classes ({', '.join(condensed[:3])}, ..); "
                f"the data {len(real)} ({', '.join(real[:3])}, ..); "
                f"give the --data-root the set was condensed from"
            )

    def decode(self) -> tuple[Tensor, Tensor]:
        """Training images ``(num_classes * ipc * factor**2, C, H, W)`` and their labels."""
        return decode(self.images, self.factor), self.labels.repeat_interleave(self.factor**2)

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file, complete or absent.

        Raises:
            UserError: if the file cannot be written.
        """
        save_set(
            path,
            [self.images],
            self.labels,
            class_names=self.class_names,
            factor=self.factor,
            mean=self.mean,
            std=self.std,
            info=self.info,
        )

    @classmethod
    def load(cls, path: str | Path) -> "SyntheticSet":
        """Read a file written by :meth:`save`.

        Raises:
            UserError: if the file is missing, damaged, or of another format.
        """
        tensors, metadata = read_tensors(Path(path), FORMAT)
        names = {"classes", "factor", "mean", "std", "ipc"}
        missing = sorted({"images", "labels", *names} - tensors.keys() - metadata.keys())
        if missing:
            raise UserError(f"{path}: expected a {FORMAT}, found one without {', '.join(missing)}")
        images, labels = tensors["images"], tensors["labels"]
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise UserError(
                f"{path}: expected images (n, C, H, W) and labels (n,), got "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        classes = len(metadata["classes"])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise UserError(
                f"{path}: expected labels from 0 to {classes - 1}, got "
                f"{int(labels.min())} to {int(labels.max())}"
            )
        info = {k: v for k, v in metadata.items() if k not in names | {"format"}}
        return cls(
            images=images,
            labels=labels,
            class_names=tuple(metadata["classes"]),
            factor=metadata["factor"],
            mean=tuple(metadata["mean"]),
            std=tuple(metadata["std"]),
            info=info,
        )

    def export(self, folder: str | Path, *, decoded: bool = False) -> None:
        """Write ``<folder>/<class>/<number>.png``, 8 bits; one file per tile if ``decoded``."""
        images, labels = self.decode() if decoded else (self.images, self.labels)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            name = self.class_names[label].replace("/", "_")
            target = Path(folder) / f"{label:04d}_{name}" / f"{number:06d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            to_picture(image).save(target)


def to_picture(image: Tensor) -> Image:
    """8 bits, grey or RGB, of an image ``(C, H, W)`` in [0, 1]."""
    pixels = (image * 255).round().byte().permute(1, 2, 0)
    return fromarray(pixels.squeeze(-1).numpy())


def save_set(
    path: str | Path,
    images: Sequence[Tensor],
    labels: Tensor,
    *,
    class_names: Sequence[str],
    factor: int,
    mean: Sequence[float],
    std: Sequence[float],
    info: dict[str, Any],
) -> None:
    """Write a condensed set; the parts of ``images`` are written in turn and never concatenated.

    Args:
        path: one ``.safetensors`` file, complete or absent.
        images: float32 ``(n, C, H, W)`` in [0, 1] each.
        labels: int64, of all images.
        class_names, factor, mean, std, info: as in :class:`SyntheticSet`.

    Raises:
        UserError: if the file cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "classes": list(class_names),
        "ipc": len(labels) // len(class_names),
        "factor": factor,
        "mean": list(mean),
        "std": list(std),
        **info,
    }
    write_tensors(Path(path), {"images": images, "labels": labels}, metadata)
