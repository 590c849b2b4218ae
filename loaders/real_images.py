"""What all kinds of ``RealImages`` share: statistics, sampling, positions, indices."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.errors import DataError
from .protocol import Indices, IntArray
from .sampling import ClassSampler, check_class


class SampledImages(ABC):
    """Base of ``MemoryImages`` and ``StreamedImages``: everything but where pixels come from.

    Images are numbered by row: those of class 0 first, then those of class 1, and so on.

    Args:
        class_names: one name per class, in label order.
        class_sizes: images per class, in label order.
        image_shape: ``(C, H, W)``, pixels.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        device: where images are served.
        seed: of the sampling, non-negative.

    Raises:
        DataError: if mean or std do not fit the channels, a class is empty or the seed negative.
    """

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        class_sizes: tuple[int, ...],
        image_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device,
        seed: int,
    ) -> None:
        channels = image_shape[0]
        if len(mean) != channels or len(std) != channels:
            raise DataError(
                f"mean and std need one number for each of {channels} channels, got "
                f"{len(mean)} and {len(std)}"
            )
        self.num_classes = len(class_names)
        self.class_names = class_names
        self.class_sizes = class_sizes
        self.image_shape = image_shape
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        # a tensor's own device is the canonical one: "cuda" becomes "cuda:0"
        self.device = torch.empty(0, device=device).device
        self._sampler = ClassSampler(class_sizes, seed)
        self._first_rows = np.concatenate(([0], np.cumsum(class_sizes))).astype(np.int64)

    def batch(self, classes: Sequence[int], per_class: int) -> Tensor:
        """Draw the next images of each class; ``batches`` is faster where they are streamed.

        Args:
            classes: class indices.
            per_class: images of each, at least 1.

        Returns:
            uint8 ``(len(classes), per_class, C, H, W)`` on the device, owned by the caller.

        Raises:
            DataError: if an argument is invalid or reading fails; nothing is drawn then.
        """
        state = self._sampler.state_dict()
        rows = self._draw_rows(self._sampler, classes, per_class)
        try:
            images = self._fetch(rows, classes)
        except BaseException:
            self._sampler.load_state_dict(state)
            raise
        return images.view(len(classes), per_class, *self.image_shape)

    def take(self, class_index: int, indices: Indices) -> Tensor:
        """Fetch the given images of one class without drawing.

        Args:
            class_index: the class.
            indices: integers in ``[0, class_sizes[class_index])``, in any order, repeats allowed.
                They are checked on the host: a tensor on a GPU costs a synchronisation.

        Returns:
            uint8 ``(len(indices), C, H, W)`` on the device, owned by the caller.

        Raises:
            DataError: if the class or an index does not exist, or reading fails.
        """
        rows = self._check_indices(class_index, indices) + self._first_rows[class_index]
        return self._fetch(rows, [class_index])

    def take_each(self, classes: Sequence[int], indices: Sequence[Indices]) -> Iterator[Tensor]:
        """Yield ``take`` of each class in turn, all read at once where they are streamed.

        Args:
            classes: class indices.
            indices: of each class, at least one.

        Raises:
            DataError: as ``take``, before the first is yielded or while reading.
        """
        rows = [
            self._check_indices(class_index, chosen) + self._first_rows[class_index]
            for class_index, chosen in zip(classes, indices, strict=True)
        ]
        return self._fetch_each(rows, classes)

    def state_dict(self) -> dict[str, IntArray]:
        """Return ``{"positions": int64 (num_classes,)}``, the number drawn so far per class."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, IntArray]) -> None:
        """Continue where ``state_dict`` was taken, given the same data and seed.

        Raises:
            DataError: if the positions are not one non-negative integer per class.
        """
        self._sampler.load_state_dict(state)

    @abstractmethod
    def _fetch(self, rows: IntArray, classes: Sequence[int]) -> Tensor:
        """Images of these rows, all of ``classes``: a new uint8 ``(len(rows), C, H, W)``."""

    def _fetch_each(self, rows: Sequence[IntArray], classes: Sequence[int]) -> Iterator[Tensor]:
        """``_fetch`` of every class."""
        for chosen, class_index in zip(rows, classes, strict=True):
            yield self._fetch(chosen, [class_index])

    def _draw_rows(self, sampler: ClassSampler, classes: Sequence[int], per_class: int) -> IntArray:
        """Rows of the next images of each class, int64 ``(len(classes) * per_class,)``."""
        drawn = sampler.draw(classes, per_class)
        return (drawn + self._first_rows[np.asarray(classes, np.int64)][:, None]).ravel()

    def _check_indices(self, class_index: int, indices: Indices) -> IntArray:
        """Indices of images of one class as an array; DataError if one does not exist."""
        check_class(class_index, self.num_classes)
        array = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
            raise DataError(f"indices must be a list of integers, got {array.dtype} {array.shape}")
        size = self.class_sizes[class_index]
        if len(array) and (array.min() < 0 or array.max() >= size):
            raise DataError(
                f"images of class {class_index} ({self.class_names[class_index]}) are 0 to "
                f"{size - 1}, got indices from {array.min()} to {array.max()}"
            )
        return array.astype(np.int64)


def check_batch_size(batch_size: int) -> None:
    """Raise DataError unless ``batch_size`` is at least 1."""
    if batch_size < 1:
        raise DataError(f"the batch size must be 1 or more, got {batch_size}")
