"""Real images that a back end decodes while the engine computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from itertools import cycle as repeat_endlessly

import numpy as np
import torch
from torch import Tensor

from ...common.errors import DataError
from ..protocol import BackEnd, IntArray
from ..real_images import SampledImages, check_batch_size
from .batch_reader import BatchReader
from .resident import Cache, keep_resident


class StreamedImages(SampledImages):
    """``RealImages`` over any back end: classes kept in memory where they fit, others streamed.

    Memory within ``batches``: the back end's buffers on the host, and the buffers in which
    batches are assembled, one on the host or two on the GPU.

    Args:
        back_end: where pixels come from.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        device: where batches are served.
        seed: of the sampling, non-negative.
        cache: ``auto``, ``device``, ``host`` or ``none``, see ``resident.keep_resident``.
        classes: those that will be drawn, the only ones kept in memory; None for all.

    Raises:
        DataError: if an argument is invalid, memory too small, or the images kept are damaged.
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
        super().__init__(
            class_names=back_end.class_names,
            class_sizes=back_end.class_sizes,
            image_shape=back_end.image_shape,
            mean=mean,
            std=std,
            device=device,
            seed=seed,
        )
        resident = keep_resident(back_end, self.device, cache, classes)
        self._reader = BatchReader(back_end, resident, self.device)

    @contextmanager
    def batches(self, cycle: Sequence[Sequence[int]], per_class: int) -> Iterator[Iterator[Tensor]]:
        """``batch`` of each entry of ``cycle`` in turn, endlessly, decoded ahead.

        A context; see ``RealImages``. Tensors have the memory layout of the back end, not always
        contiguous. Nothing else may draw within the context.

        Raises:
            DataError: if an argument is invalid; from the iterator, if reading fails or something
                else drew, and that batch is not counted as drawn.
        """
        entries = [tuple(int(index) for index in entry) for entry in cycle]
        if not all(entries) or not entries:
            raise DataError(f"batches need classes to draw from, got the cycle {entries}")
        for entry in entries:
            self._sampler.copy().draw(entry, per_class)

        def iterate_rows() -> Iterator[IntArray]:
            # every source draws ahead with a sampler of its own, starting here
            sampler = self._sampler.copy()
            return (
                self._draw_rows(sampler, entry, per_class) for entry in repeat_endlessly(entries)
            )

        with self._reader.read(iterate_rows, list(chain.from_iterable(entries))) as tensors:
            yield self._count_drawn(tensors, entries, per_class)

    def read_rows(
        self, iterate_rows: Callable[[], Iterator[IntArray]]
    ) -> AbstractContextManager[Iterator[Tensor]]:
        """Images of any classes by row, decoded ahead; see ``RealImages``.

        Raises:
            DataError: from the iterator, if reading fails.
        """
        return self._reader.read(iterate_rows, range(self.num_classes))

    def ordered(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, class by class: uint8 ``(B, C, H, W)`` and int64 labels ``(B,)``.

        The tensors are owned by the caller. A generator: closing it ends all work.

        Raises:
            DataError: if ``batch_size`` is below 1; from the iterator, if reading fails.
        """
        check_batch_size(batch_size)
        return self._read_in_order(batch_size)

    def _count_drawn(
        self, tensors: Iterator[Tensor], entries: list[tuple[int, ...]], per_class: int
    ) -> Iterator[Tensor]:
        """Advance the sampler by every batch that is served."""
        positions = self._sampler.state_dict()["positions"]
        for entry, images in zip(repeat_endlessly(entries), tensors, strict=False):
            if not np.array_equal(positions, self._sampler.state_dict()["positions"]):
                raise DataError(
                    "images were drawn, or a state was loaded, while batches were decoded ahead: "
                    "leave the context of batches() before"
                )
            self._sampler.skip(entry, per_class)
            positions = self._sampler.state_dict()["positions"]
            yield images.view(len(entry), per_class, *self.image_shape)

    def _read_in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        total = int(self._first_rows[-1])

        def iterate_rows() -> Iterator[IntArray]:
            for start in range(0, total, batch_size):
                yield np.arange(start, min(start + batch_size, total))

        with self._reader.read(iterate_rows, range(self.num_classes)) as tensors:
            for rows, images in zip(iterate_rows(), tensors, strict=True):
                labels = np.searchsorted(self._first_rows, rows, side="right") - 1
                yield _copy_contiguous(images), torch.from_numpy(labels).to(self.device)

    def _fetch(self, rows: IntArray, classes: Sequence[int]) -> Tensor:
        if len(rows) == 0:
            return torch.empty((0, *self.image_shape), dtype=torch.uint8, device=self.device)
        with self._reader.read(lambda: iter([rows]), classes) as tensors:
            return _copy_contiguous(next(tensors))

    def _fetch_each(self, rows: Sequence[IntArray], classes: Sequence[int]) -> Iterator[Tensor]:
        # threads or processes that decode are started once, not for every class
        with self._reader.read(lambda: iter(rows), classes) as tensors:
            for images in tensors:
                yield _copy_contiguous(images)


def _copy_contiguous(images: Tensor) -> Tensor:
    return images.clone(memory_format=torch.contiguous_format)
