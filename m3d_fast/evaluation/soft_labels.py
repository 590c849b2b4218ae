"""Soft labels stored with a condensed set: a teacher's logits, pruned, in half precision.

One label per decoded image, of the image as it is: protocol "soft" with stored labels therefore
trains on another label than the teacher at work gives, who sees the augmented and mixed image.
CutMix mixes stored labels as it mixes the images; crops and flips leave them as they are.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.tensors import read_tensors, write_tensors
from ..networks.arithmetic import CPU_PIECE, autocast, convolutions
from ..normalisation import Normalisation
from ..synthetic import StoredImages
from .losses import soften

log = logging.getLogger("m3d_fast")

FORMAT = "m3d_fast soft labels 1"
VALUE, INDEX = torch.float16, torch.int16  # of an entry: 4 bytes


@dataclass(frozen=True)
class SoftLabels:
    """The largest logits of every image.

    Attributes:
        values: logits, float16 ``(n, k)``, in falling order.
        classes: of which classes, int16 ``(n, k)``.
    """

    values: Tensor
    classes: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of the labels."""
        return count_bytes(*self.values.shape)

    def soften(self, temperature: float, num_classes: int) -> Tensor:
        """Probabilities float32 ``(n, num_classes)`` at a temperature, 0 for pruned classes."""
        probabilities = soften(self.values.float(), temperature)
        whole = torch.zeros(len(probabilities), num_classes, device=probabilities.device)
        return whole.scatter_(1, self.classes.long(), probabilities)


def count_bytes(images: int, kept: int) -> int:
    """Bytes of the labels of so many images, with ``kept`` classes each."""
    return images * kept * (VALUE.itemsize + INDEX.itemsize)


@torch.no_grad()
def label(teacher: nn.Module, images: StoredImages, kept: int, look: "Look") -> SoftLabels:
    """The labels that a teacher gives to images as they are, without augmentation.

    Args:
        teacher: in evaluation mode, on the device of ``look``.
        images: a training set.
        kept: classes of which the logits are kept, the most probable ones.
        look: how the teacher sees images.
    """
    values, classes = [], []
    with autocast(look.device, look.precision), convolutions(look.device, look.precision):
        for rows in torch.arange(len(images), device=look.device).split(CPU_PIECE):
            logits = teacher(look.normalise(images[rows])).float()
            top = logits.topk(kept, 1)
            values.append(top.values.to(VALUE))
            classes.append(top.indices.to(INDEX))
    return SoftLabels(torch.cat(values), torch.cat(classes))


@dataclass(frozen=True)
class Look:
    """How a teacher sees images.

    Attributes:
        normalise: the images, on the device.
        device: of teacher and images.
        precision: "bf16", "tf32" or "fp32".
    """

    normalise: Normalisation
    device: torch.device
    precision: str


class LabelFile:
    """The stored labels of a condensed set, beside its results.

    Args:
        path: of the file, which need not exist.
        synthetic: SHA-256 of the set's file.
        kept: classes of a label.
        teacher: identity of the teacher that makes them; None takes labels of any.

    Attributes:
        teacher: identity of the teacher that made them, or will.

    Raises:
        UserError: if the file is damaged, or holds other labels; without a teacher, if there is
            none.
    """

    def __init__(self, path: Path, synthetic: str, kept: int, teacher: str | None) -> None:
        self._path, self._synthetic, self._kept = path, synthetic, kept
        if path.exists():
            _, metadata = read_tensors(path, FORMAT)
            expected = {"synthetic_sha256": synthetic, "kept": kept}
            expected["teacher"] = teacher or metadata.get("teacher")
            if any(metadata.get(name) != value for name, value in expected.items()):
                raise UserError(
                    f"{path}: expected labels of this condensed set by this teacher, of {kept} "
                    f"classes each, found others; remove it, and they are made anew"
                )
            teacher = str(metadata["teacher"])
        elif teacher is None:
            raise UserError(
                f"stored_labels: there are none in {path}; give the teacher that makes them with "
                f"--teacher"
            )
        self.teacher = teacher

    def make(self, make: Callable[[], SoftLabels]) -> None:
        """Write what ``make`` returns, unless the labels are there."""
        if self._path.exists():
            return
        labels = make()
        metadata: dict[str, Any] = {"format": FORMAT, "synthetic_sha256": self._synthetic}
        metadata |= {"kept": self._kept, "teacher": self.teacher, "bytes": labels.bytes}
        write_tensors(self._path, {"values": labels.values, "classes": labels.classes}, metadata)
        log.info("soft labels of %d bytes are stored in %s", labels.bytes, self._path)

    def read(self, device: torch.device) -> SoftLabels:
        """The labels, on ``device``."""
        tensors, _ = read_tensors(self._path, FORMAT)
        return SoftLabels(tensors["values"].to(device), tensors["classes"].to(device))
