"""How are real images served that a back end decodes while the engine computes?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from itertools import cycle as endlessly

import numpy as np
import torch
from torch import Tensor

from ...common.errors import DataError
from ..memory import checked_indices
from ..protocol import BackEnd, Indices, IntArray
from ..sampling import ClassSampler
from .batch_reader import BatchReader, Plan
from .resident import Cache, keep_resident


class StreamedImages:
    """``RealImages`` over any back end: classes kept in memory where they fit, others streamed.

    Memory within ``batches``: the back end's buffers on the host, and one batch there or two on
    the GPU to put batches together.

    Args:
        back_end: where pixels come from.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        device: where batches are served.
        seed: of the sampling, non-negative.
        cache: ``auto``, ``device``, ``host`` or ``none``, see ``resident.keep_resident``.
        classes: those that will be drawn, the only ones kept in memory; None for all.

    Raises:
        DataError: if an argument is wrong, memory too small, or the images kept are damaged.
    """

    def __init__(
        self,
        back_end: BackEnd,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: str | torch.device = "cpu",
        seed: int = 0,
        cache: Cache = "auto",
        classes: Sequence[int] | None = None,
    ) -> None:
        channels = back_end.image_shape[0]
        if len(mean) != channels or len(std) != channels:
            raise DataError(
                f"mean and std need one number for each of {channels} channels, got "
                f"{len(mean)} and {len(std)}"
            )
        self.num_classes = len(back_end.class_names)
        self.class_names = back_end.class_names
        self.class_sizes = back_end.class_sizes
        self.image_shape = back_end.image_shape
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        # the tensor's own device is the canonical one: "cuda" becomes "cuda:0"
        self.device = torch.empty(0, device=device).device
        self._sampler = ClassSampler(self.class_sizes, seed)
        self._offsets = np.concatenate(([0], np.cumsum(self.class_sizes))).astype(np.int64)
        resident = keep_resident(back_end, self.device, cache, classes)
        self._reader = BatchReader(back_end, resident, self.device)

    def batch(self, classes: Sequence[int], per_class: int) -> Tensor:
        """Draw the next images of each class; ``batches`` is faster where they are streamed.

        Args:
            classes: class indices.
            per_class: images of each, at least 1.

        Returns:
            uint8 ``(len(classes), per_class, C, H, W)`` on the device, the caller's own.

        Raises:
            DataError: if an argument is wrong or reading fails; nothing is drawn then.
        """
        ahead = self._sampler.copy()
        rows = self._rows(classes, ahead.draw(classes, per_class))
        images = self._read_once(rows, classes).view(len(classes), per_class, *self.image_shape)
        self._sampler = ahead
        return images

    @contextmanager
    def batches(self, cycle: Sequence[Sequence[int]], per_class: int) -> Iterator[Iterator[Tensor]]:
        """``batch`` of each entry of ``cycle`` in turn, endlessly, decoded ahead.

        A context; see ``RealImages``. Tensors come in the layout of the back end, not always
        contiguous. Within it nothing else may draw.

        Raises:
            DataError: if an argument is wrong; from the iterator, if reading fails or something
                else drew, and that batch is not counted as drawn.
        """
        entries = [tuple(int(index) for index in entry) for entry in cycle]
        if not all(entries) or not entries:
            raise DataError(f"batches need classes to draw from, got the cycle {entries}")
        for entry in entries:
            self._sampler.copy().draw(entry, per_class)

        def plan() -> Plan:
            # each reader looks ahead on its own, from here
            sampler = self._sampler.copy()
            return (
                self._rows(entry, sampler.draw(entry, per_class)) for entry in endlessly(entries)
            )

        with self._reader.read(plan, list(chain.from_iterable(entries))) as tensors:
            yield self._handed_out(tensors, entries, per_class)

    def take(self, class_index: int, indices: Indices) -> Tensor:
        """Fetch the named images of one class without moving the sampler.

        Args:
            class_index: the class.
            indices: integers in ``[0, class_sizes[class_index])``, in any order, repeats allowed.

        Returns:
            uint8 ``(len(indices), C, H, W)`` on the device, the caller's own.

        Raises:
            DataError: if the class or an index does not exist, or reading fails.
        """
        rows = checked_indices(self, class_index, indices) + self._offsets[class_index]
        return self._read_once(rows, [class_index])

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, class by class: uint8 ``(B, C, H, W)`` and int64 labels ``(B,)``.

        The tensors are the caller's own. A generator: closing it ends all work.

        Raises:
            DataError: if ``batch_size`` is below 1; from the iterator, if reading fails.
        """
        if batch_size < 1:
            raise DataError(f"the batch size must be 1 or more, got {batch_size}")
        return self._ordered(batch_size)

    def state_dict(self) -> dict[str, IntArray]:
        """Return ``{"positions": int64 (num_classes,)}``: how far every class has been drawn."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, IntArray]) -> None:
        """Continue where ``state_dict`` was taken, given the same data and seed.

        Raises:
            DataError: if the positions are not one non-negative integer per class.
        """
        self._sampler.load_state_dict(state)

    def _rows(self, classes: Sequence[int], drawn: IntArray) -> IntArray:
        return (drawn + self._offsets[np.asarray(classes, np.int64)][:, None]).ravel()

    def _handed_out(
        self, tensors: Iterator[Tensor], entries: list[tuple[int, ...]], per_class: int
    ) -> Iterator[Tensor]:
        place = self._sampler.state_dict()["positions"]
        for entry, images in zip(endlessly(entries), tensors, strict=False):
            if not np.array_equal(place, self._sampler.state_dict()["positions"]):
                raise DataError(
                    "images were drawn, or a state was loaded, while batches were decoded ahead: "
                    "leave the context of batches() before"
                )
            # past what the plan drew for this batch
            self._sampler.skip(entry, per_class)
            place = self._sampler.state_dict()["positions"]
            yield images.view(len(entry), per_class, *self.image_shape)

    def _ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        total = int(self._offsets[-1])

        def plan() -> Plan:
            for start in range(0, total, batch_size):
                yield np.arange(start, min(start + batch_size, total))

        with self._reader.read(plan, range(self.num_classes)) as tensors:
            for rows, images in zip(plan(), tensors, strict=True):
                labels = np.searchsorted(self._offsets, rows, side="right") - 1
                yield _own(images), torch.from_numpy(labels).to(self.device)

    def _read_once(self, rows: IntArray, classes: Sequence[int]) -> Tensor:
        if len(rows) == 0:
            return torch.empty((0, *self.image_shape), dtype=torch.uint8, device=self.device)
        with self._reader.read(lambda: iter([rows]), classes) as tensors:
            return _own(next(tensors))


def _own(images: Tensor) -> Tensor:
    """A copy in torch's usual layout, for the caller to keep."""
    return images.clone(memory_format=torch.contiguous_format)
