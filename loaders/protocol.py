"""What does the engine need from a back end that holds real images?"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
Indices = Sequence[int] | npt.NDArray[np.integer] | Tensor


class RealImages(Protocol):
    """Real images, reached class by class; every back end offers these names.

    The draws of ``batch`` are those of ``ClassSampler`` with the same class sizes and seed,
    whatever the back end.

    Attributes:
        num_classes: number of classes.
        class_names: one name per class, in label order.
        class_sizes: images per class, in label order.
        image_shape: ``(C, H, W)``, pixels.
        mean: per channel, in units where pixels run over [0, 1].
        std: per channel, same units.
        device: where the tensors are returned.
    """

    num_classes: int
    class_names: tuple[str, ...]
    class_sizes: tuple[int, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def batch(self, classes: Sequence[int], per_class: int) -> Tensor:
        """Next images of each class, uint8 ``(len(classes), per_class, C, H, W)``."""
        ...

    def take(self, class_index: int, indices: Indices) -> Tensor:
        """The named images of one class, uint8 ``(len(indices), C, H, W)``; draws nothing."""
        ...

    def state_dict(self) -> dict[str, IntArray]:
        """Position of every class in its shuffled order."""
        ...

    def load_state_dict(self, state: Mapping[str, IntArray]) -> None:
        """Continue exactly where the ``state_dict`` was taken."""
        ...
