"""Real images of a set that is held on the device as a whole."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle as repeat_endlessly

import numpy as np
import torch
from torch import Tensor

from ..common.errors import DataError
from .protocol import IntArray
from .readers.labelled import LabelledImages, check_labels
from .real_images import SampledImages, check_batch_size


class MemoryImages(SampledImages):
    """``RealImages`` held as one uint8 tensor on the device, grouped by class.

    Within a class the images keep the order in which they were given.

    Args:
        data: images uint8 ``(N, C, H, W)`` on any device, labels, class names.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        device: where the images are held and served.
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
        sizes = _count_images(data)
        channels, height, width = data.images.shape[1:]
        super().__init__(
            class_names=data.class_names,
            class_sizes=sizes,
            image_shape=(channels, height, width),
            mean=mean,
            std=std,
            device=device,
            seed=seed,
        )
        self._images = _group_by_class(data).to(self.device)

    def batches(
        self, cycle: Sequence[Sequence[int]], per_class: int
    ) -> AbstractContextManager[Iterator[Tensor]]:
        """``batch`` of each entry of ``cycle`` in turn, endlessly; see ``RealImages``."""
        return nullcontext(self.batch(classes, per_class) for classes in repeat_endlessly(cycle))

    def read_rows(
        self, iterate_rows: Callable[[], Iterator[IntArray]]
    ) -> AbstractContextManager[Iterator[Tensor]]:
        """Images of any classes by row; see ``RealImages``."""
        return nullcontext(self._fetch(rows, ()) for rows in iterate_rows())

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, class by class: uint8 ``(B, C, H, W)`` and int64 labels ``(B,)``.

        Raises:
            DataError: if ``batch_size`` is below 1.
        """
        check_batch_size(batch_size)
        sizes = torch.tensor(self.class_sizes, device=self.device)
        labels = torch.arange(self.num_classes, device=self.device).repeat_interleave(sizes)
        return zip(self._images.split(batch_size), labels.split(batch_size), strict=True)

    def _fetch(self, rows: IntArray, classes: Sequence[int]) -> Tensor:
        index = torch.from_numpy(rows)
        if self.device.type == "cuda":
            # from pinned memory the upload is queued like any kernel: the host does not wait
            index = index.pin_memory().to(self.device, non_blocking=True)
        return self._images.index_select(0, index.to(self.device))


def _count_images(data: LabelledImages) -> tuple[int, ...]:
    """Images per class; DataError if images and labels do not fit or a class is empty."""
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


def _group_by_class(data: LabelledImages) -> Tensor:
    if (np.diff(data.labels) >= 0).all():
        return data.images
    order = torch.from_numpy(np.argsort(data.labels, kind="stable"))
    return data.images.index_select(0, order.to(data.images.device))
