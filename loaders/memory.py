"""How are real images served when the whole set lives on the device?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle as endlessly

import numpy as np
import torch
from torch import Tensor

from ..common.errors import DataError
from .protocol import Indices, IntArray, RealImages
from .readers.labelled import LabelledImages, check_labels
from .sampling import ClassSampler


class MemoryImages:
    """``RealImages`` held as one uint8 tensor on the device, grouped by class.

    Within a class the images keep the order in which they were given.

    Args:
        data: images uint8 ``(N, C, H, W)`` on any device, labels, class names.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        device: where the images live and are served.
        seed: of the sampling, non-negative.

    Raises:
        DataError: if shapes, counts or labels disagree, or a class is empty.
    """

    def __init__(
        self,
        data: LabelledImages,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        sizes = _class_sizes(data)
        channels, height, width = data.images.shape[1:]
        if len(mean) != channels or len(std) != channels:
            raise DataError(
                f"mean and std need one number for each of {channels} channels, got "
                f"{len(mean)} and {len(std)}"
            )
        self.num_classes = len(data.class_names)
        self.class_names = data.class_names
        self.class_sizes = sizes
        self.image_shape: tuple[int, int, int] = (channels, height, width)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self._images = _grouped(data).to(torch.device(device))
        # the tensor's own device is the canonical one: "cuda" becomes "cuda:0"
        self.device = self._images.device
        self._offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self._sampler = ClassSampler(sizes, seed)

    def batch(self, classes: Sequence[int], per_class: int) -> Tensor:
        """Draw the next images of each class.

        Args:
            classes: class indices.
            per_class: images of each, at least 1.

        Returns:
            uint8 ``(len(classes), per_class, C, H, W)`` on the device.

        Raises:
            DataError: if a class does not exist or ``per_class`` is below 1.
        """
        drawn = self._sampler.draw(classes, per_class)
        rows = drawn + self._offsets[np.asarray(classes, dtype=np.int64)][:, None]
        return self._select(rows.ravel()).view(*rows.shape, *self.image_shape)

    def batches(
        self, cycle: Sequence[Sequence[int]], per_class: int
    ) -> AbstractContextManager[Iterator[Tensor]]:
        """``batch`` of each entry of ``cycle`` in turn, endlessly; see ``RealImages``."""
        return nullcontext(self.batch(classes, per_class) for classes in endlessly(cycle))

    def take(self, class_index: int, indices: Indices) -> Tensor:
        """Fetch the named images of one class without moving the sampler.

        Args:
            class_index: the class.
            indices: integers in ``[0, class_sizes[class_index])``, in any order, repeats allowed.
                They are checked on the host: a tensor on a GPU costs a synchronisation.

        Returns:
            uint8 ``(len(indices), C, H, W)`` on the device.

        Raises:
            DataError: if the class or an index does not exist.
        """
        rows = checked_indices(self, class_index, indices)
        return self._select(rows + self._offsets[class_index])

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, class by class: uint8 ``(B, C, H, W)`` and int64 labels ``(B,)``.

        Raises:
            DataError: if ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise DataError(f"the batch size must be 1 or more, got {batch_size}")
        sizes = torch.tensor(self.class_sizes, device=self.device)
        labels = torch.arange(self.num_classes, device=self.device).repeat_interleave(sizes)
        return zip(self._images.split(batch_size), labels.split(batch_size), strict=True)

    def state_dict(self) -> dict[str, IntArray]:
        """Return ``{"positions": int64 (num_classes,)}``: how far every class has been drawn."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, IntArray]) -> None:
        """Continue where ``state_dict`` was taken, given the same data and seed.

        Raises:
            DataError: if the positions are not one non-negative integer per class.
        """
        self._sampler.load_state_dict(state)

    def _select(self, rows: IntArray) -> Tensor:
        index = torch.from_numpy(rows)
        if self.device.type == "cuda":
            # from pinned memory the upload is queued like any kernel: the host does not wait
            index = index.pin_memory().to(self.device, non_blocking=True)
        return self._images.index_select(0, index.to(self.device))


def _class_sizes(data: LabelledImages) -> tuple[int, ...]:
    if data.images.dtype != torch.uint8 or data.images.ndim != 4:
        raise DataError(
            f"images must be uint8 (N, C, H, W), got {data.images.dtype} "
            f"of shape {tuple(data.images.shape)} from {data.source}"
        )
    if len(data.images) != len(data.labels):
        raise DataError(
            f"{data.source} holds {len(data.images)} images but {len(data.labels)} labels: "
            "the files do not belong together"
        )
    check_labels(data.labels, len(data.class_names), data.source)
    sizes = np.bincount(data.labels, minlength=len(data.class_names))
    for name, size in zip(data.class_names, sizes, strict=True):
        if size == 0:
            raise DataError(
                f"class '{name}' of {data.source} has no image: add some or remove the class"
            )
    return tuple(int(size) for size in sizes)


def _grouped(data: LabelledImages) -> Tensor:
    if (np.diff(data.labels) >= 0).all():
        return data.images
    order = torch.from_numpy(np.argsort(data.labels, kind="stable"))
    return data.images.index_select(0, order.to(data.images.device))


def checked_indices(real: RealImages, class_index: int, indices: Indices) -> IntArray:
    """Indices of images of one class as an array.

    Raises:
        DataError: if the class or an index does not exist.
    """
    if not 0 <= class_index < real.num_classes:
        raise DataError(
            f"class {class_index} does not exist: classes are 0 to {real.num_classes - 1}"
        )
    rows = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
        raise DataError(f"indices must be a list of integers, got {rows.dtype} {rows.shape}")
    size = real.class_sizes[class_index]
    if len(rows) and (rows.min() < 0 or rows.max() >= size):
        raise DataError(
            f"images of class {class_index} ({real.class_names[class_index]}) are 0 to "
            f"{size - 1}, got indices from {rows.min()} to {rows.max()}"
        )
    return rows.astype(np.int64)
