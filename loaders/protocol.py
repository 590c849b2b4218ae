"""What the engine needs of real images, and the loaders of a back end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]
Indices = Sequence[int] | npt.NDArray[np.integer] | Tensor


class RealImages(Protocol):
    """Real images, accessed class by class, whatever the back end.

    The draws of ``batch`` are those of ``ClassSampler`` with the same class sizes and seed,
    whatever the back end.

    Attributes:
        num_classes: number of classes.
        class_names: one name per class, in label order.
        class_sizes: images per class, in label order.
        image_shape: ``(C, H, W)``, pixels.
        mean: per channel, in units where pixels run over [0, 1].
        std: per channel, same units.
        device: of the returned tensors.
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

    def batches(
        self, cycle: Sequence[Sequence[int]], per_class: int
    ) -> AbstractContextManager[Iterator[Tensor]]:
        """The same draws, decoded ahead: ``batch`` of each entry of ``cycle`` in turn, endlessly.

        A tensor is valid until the next one is requested. ``state_dict`` counts the batches that
        were served, not those decoded ahead. Leaving the context ends all work.
        """
        ...

    def take(self, class_index: int, indices: Indices) -> Tensor:
        """The given images of one class, uint8 ``(len(indices), C, H, W)``; draws nothing."""
        ...

    def read_rows(
        self, iterate_rows: Callable[[], Iterator[IntArray]]
    ) -> AbstractContextManager[Iterator[Tensor]]:
        """Images of any classes by row, those of class 0 first: uint8 ``(len(rows), C, H, W)``.

        Args:
            iterate_rows: gives the same arrays of rows every time it is called, none of them empty;
                what is not in memory is decoded ahead, in their order.

        Returns:
            A context; within it, one tensor per array, valid until the next one is requested.
            Draws nothing.
        """
        ...

    def take_each(self, classes: Sequence[int], indices: Sequence[Indices]) -> Iterator[Tensor]:
        """``take`` of each class in turn, at least one image of each; read at once."""
        ...

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, class by class: uint8 ``(B, C, H, W)``, int64 labels ``(B,)``.

        ``B`` is ``batch_size`` but for the last. Draws nothing.
        """
        ...

    def state_dict(self) -> dict[str, IntArray]:
        """Return the position of every class in its shuffled order."""
        ...

    def load_state_dict(self, state: Mapping[str, IntArray]) -> None:
        """Continue exactly where the ``state_dict`` was taken."""
        ...


class BackEnd(Protocol):
    """Where pixels come from that are not in memory: all that a new back end implements.

    Images are numbered by row: those of class 0 first, in the order of their sorted files, then
    those of class 1, and so on.

    Attributes:
        name: for the log, such as "FFCV".
        class_names: one name per class, in label order.
        class_sizes: images per class, in label order.
        image_shape: ``(C, H, W)``, pixels.
        layout: of its tensors in memory, ``torch.channels_last`` or ``torch.contiguous_format``.
        source: where the images come from, for the log and for messages.
    """

    name: str
    class_names: tuple[str, ...]
    class_sizes: tuple[int, ...]
    image_shape: tuple[int, int, int]
    layout: torch.memory_format
    source: str

    def read(self, row_batches: Iterator[IntArray]) -> AbstractContextManager[Iterator[Tensor]]:
        """Decode these rows, in their order, ahead of the reader.

        Args:
            row_batches: arrays of rows, finite or endless; advanced in another thread or process,
                ahead of the reader.

        Returns:
            A context; within it, one uint8 host tensor ``(len(rows), C, H, W)`` per array, valid
            until the next one is requested. Leaving the context ends all threads and processes.

        Raises:
            DataError: from the iterator, naming file and image, for any failure of a worker, its
                death included; within seconds.
        """
        ...
