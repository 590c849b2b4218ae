"""A training set that is streamed: batches of an epoch are read ahead of its steps."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..loaders import RealImages


class StreamedSet:
    """All images of a data set; the one batch in memory is indexed as other sets are.

    Args:
        real: the images.
        batch_size: images of a batch, at most.

    Attributes:
        labels: of the batch at hand, int64 ``(B,)``, on the device.
    """

    def __init__(self, real: RealImages, batch_size: int) -> None:
        self._real, self._ends = real, np.cumsum(real.class_sizes)
        count = min(batch_size, len(self))
        self._batch = torch.zeros((count, *real.image_shape), dtype=torch.uint8, device=real.device)
        self.labels = torch.zeros(count, dtype=torch.int64, device=real.device)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Images of the batch at hand, float in [0, 1]; ``positions`` int64 ``(m,)``."""
        return self._batch[positions].float() / 255

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Read the batches of an epoch in turn; yields the positions of each, to index it.

        Args:
            batches: rows of the data set, int64 ``(B,)`` each.
        """
        rows = [batch.cpu().numpy() for batch in batches]
        positions = torch.arange(len(self.labels), device=self.labels.device)
        with self._real.read_rows(lambda: iter(rows)) as tensors:
            for wanted, images in zip(rows, tensors, strict=True):
                labels = torch.from_numpy(np.searchsorted(self._ends, wanted, side="right"))
                self._batch[: len(wanted)].copy_(images, non_blocking=True)
                self.labels[: len(wanted)].copy_(labels)
                yield positions[: len(wanted)]
