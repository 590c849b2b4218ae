"""What a file of labelled images holds, whatever its form, and what is wrong with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.files import read_json

METADATA_FILE = "set.json"  # beside files that have no place for what it says
ROUNDING = 1e-4  # by which pixels may leave [0, 1]: normalising and back rounds


@dataclass(frozen=True)
class Content:
    """Labelled images.

    Attributes:
        images: ``(n, C, H, W)``, float in [0, 1] or uint8.
        labels: integers ``(n,)``.
        metadata: what else is known: ``classes`` (names in label order), ``factor``, ``mean`` and
            ``std`` per channel, ``dataset``, ``method``, ...
    """

    images: Tensor
    labels: Tensor
    metadata: dict[str, Any] = field(default_factory=dict)


def read_metadata(file: Path) -> dict[str, Any]:
    """What a JSON file says of a set; nothing if there is none.

    Raises:
        UserError: if it is damaged.
    """
    return check_metadata(read_json(file), str(file)) if file.exists() else {}


def check_metadata(known: Any, subject: str) -> dict[str, Any]:
    """Return ``known`` if it can describe a set.

    Raises:
        UserError: about ``subject``, if it cannot.
    """
    if not isinstance(known, dict):
        raise UserError(f"{subject}: expected names and values, got {type(known).__name__}")
    for name in ("classes", "mean", "std"):
        if not isinstance(known.get(name, []), list):
            raise UserError(f"{subject}: expected a list as {name}, got {known[name]!r}")
    return known


def check_tensors(images: Any, labels: Any, subject: str) -> None:
    """Raise UserError, about ``subject``, unless these are images and integer labels."""
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        kinds = f"{type(images).__name__} and {type(labels).__name__}"
        raise UserError(f"{subject}: expected images and labels as tensors or arrays, got {kinds}")
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise UserError(
            f"{subject}: expected images (n, C, H, W) and labels (n,), got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"{subject}: expected whole numbers as labels, got {labels.dtype}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise UserError(f"{subject}: expected pixels as float or uint8, got {images.dtype}")


def to_unit_range(images: Tensor, subject: str) -> Tensor:
    """The images as float32 in [0, 1], of bytes or of floats; ``subject`` names them in errors.

    Raises:
        UserError: for pixels that are NaN, infinite or outside [0, 1].
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    low, high = (float(bound) for bound in torch.aminmax(images.detach().float()))
    if not low >= -ROUNDING or not high <= 1 + ROUNDING:  # NaN fails both
        if low == low and high == high:
            what = f"pixels from {low:.4g} to {high:.4g}; undo a normalisation first"
        else:
            what = "pixels that are NaN; they cannot be trained on"
        raise UserError(f"{subject}: expected pixels in [0, 1], got {what}")
    if images.dtype == torch.float32 and low >= 0 and high <= 1:
        return images  # as it is: it may be a mapped file
    return images.detach().float().clamp(0, 1)


def check_counts(labels: Tensor, num_classes: int, subject: str) -> None:
    """Raise UserError unless every class from 0 has as many images as every other."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"{subject}: expected labels from 0 to {num_classes - 1}, got {low} to {high}"
        )
    counts = torch.bincount(labels.long(), minlength=num_classes)
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[least] == 0:
        raise UserError(
            f"{subject}: expected images of all {num_classes} classes, got none of class {least}"
        )
    if counts[least] != counts[most]:
        raise UserError(
            f"{subject}: expected equally many images of every class, got {int(counts[least])} of "
            f"class {least} and {int(counts[most])} of class {most}"
        )


def match_channels(images: Tensor, channels: int, subject: str) -> Tensor:
    """The images with this number of channels: grey as RGB, or RGB that is grey as one channel.

    Raises:
        UserError: if colours would be lost.
    """
    if images.shape[1] == channels:
        return images
    if (images.shape[1], channels) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    grey = images[:, :1]
    if (images.shape[1], channels) != (3, 1) or not torch.equal(grey.expand_as(images), images):
        raise UserError(f"{subject}: expected images of {channels} channels, got {images.shape[1]}")
    return grey.contiguous()
