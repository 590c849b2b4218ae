"""What a network knows at a step: images of the classes seen so far, for training and for testing.

The classes are numbered in the order in which they came.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.seeds import generator
from ..loaders import MemoryImages, RealImages
from ..loaders.readers.labelled import LabelledImages
from ..synthetic import StoredImages, label_images

READ_AT_ONCE = 512  # test images


def draw_order(seed: int, number: int, num_classes: int) -> list[int]:
    """The order of the classes: a permutation, a function of the seed and its number alone."""
    stream = generator(seed, "class-order", number)
    return torch.randperm(num_classes, generator=stream).tolist()


def group_size(num_classes: int, steps: int) -> int:
    """Classes that come at each step.

    Raises:
        UserError: if the groups are not equal.
    """
    size, rest = divmod(num_classes, steps)
    if rest or not size:
        raise UserError(
            f"steps: expected a number that divides the {num_classes} classes, got {steps}"
        )
    return size


def select_memory(images: Tensor, factor: int, seen: Sequence[int]) -> tuple[StoredImages, Tensor]:
    """Training images of the classes seen, and their new labels.

    Args:
        images: condensed or real, ``(classes, n, C, H, W)``, float in [0, 1] or uint8.
        factor: tiles per side of each.
        seen: classes in the order in which they came.
    """
    return label_images(images[torch.tensor(seen, device=images.device)], factor)


class TestImages:
    """All test images in memory, on the device, of which those of some classes are served.

    Args:
        real: of all classes.

    Attributes:
        class_names: of all classes, in the order of the data set.
    """

    __test__ = False  # for pytest

    def __init__(self, real: RealImages) -> None:
        pieces = list(real.ordered(READ_AT_ONCE))
        self._images = torch.cat([images for images, _ in pieces])
        self._labels = torch.cat([labels for _, labels in pieces])
        self._real, self.class_names = real, tuple(real.class_names)

    def __len__(self) -> int:
        return len(self._images)

    def select(self, seen: Sequence[int]) -> MemoryImages:
        """Those of the classes ``seen``, which are numbered in this order."""
        real, device = self._real, self._images.device
        numbers = torch.full((real.num_classes,), -1, device=device)
        numbers[torch.tensor(seen, device=device)] = torch.arange(len(seen), device=device)
        labels = numbers[self._labels]
        chosen = labels >= 0
        data = LabelledImages(
            images=self._images[chosen],
            labels=labels[chosen].cpu().numpy(),
            class_names=tuple(real.class_names[label] for label in seen),
            source="the test images",
        )
        return MemoryImages(data, mean=real.mean, std=real.std, device=device)
