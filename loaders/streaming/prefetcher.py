"""Threads that fill buffers in order, ahead of the reader, and never leave it waiting."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.errors import DataError
from ..protocol import IntArray

# writes the pixels of rows (n,) into uint8 (n, C, H, W)
Fill = Callable[[IntArray, np.ndarray], None]

_PIECE = 32  # images a thread takes at once: small enough to divide a batch evenly
_ALIVE_SECONDS = 0.5  # between checks that the threads are alive


@dataclass
class _Slot:
    rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    buffer: Tensor | None = None
    started: int = 0  # images given to threads
    filled: int = 0

    @property
    def images(self) -> Tensor:
        assert self.buffer is not None
        return self.buffer[: len(self.rows)]


class Prefetcher:
    """One tensor per array of rows, filled by threads while earlier ones are in use.

    ``ahead + 2`` buffers are allocated once and used in turn: one is the reader's, one is being
    filled, ``ahead`` wait between. A thread's exception is raised in the reader. A context: leaving
    it ends the threads and frees the buffers.

    Args:
        row_batches: arrays of rows, finite or endless; advanced by the threads, one at a time.
        worker: opened once in every thread, it gives the function that fills.
        image_shape: ``(C, H, W)``.
        source: what is read, for messages.
        workers: threads, at least 1.
        ahead: batches ready beyond the reader's.
        pinned: whether buffers are page-locked, for copies to a GPU.
        layout: of the buffers in memory.
    """

    def __init__(
        self,
        row_batches: Iterator[IntArray],
        worker: Callable[[], AbstractContextManager[Fill]],
        image_shape: tuple[int, ...],
        *,
        source: str,
        workers: int,
        ahead: int = 2,
        pinned: bool = False,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._row_batches = row_batches
        self._worker = worker
        self._shape = image_shape
        self._source = source
        self._memory: dict[str, Any] = {"pin_memory": pinned, "memory_format": layout}
        self._slots = [_Slot() for _ in range(ahead + 2)]
        self._begun = 0  # batches; the newest may still have images not given to a thread
        self._requested = 0  # batches, by the reader, which uses the last of them
        self._exhausted = self._stopped = False
        self._failure: BaseException | None = None
        self._change = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"m3d_fast reader {number}", daemon=True)
            for number in range(workers)
        ]

    def __enter__(self) -> Iterator[Tensor]:
        for thread in self._threads:
            thread.start()
        return self._iterate_tensors()

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._slots.clear()

    def _iterate_tensors(self) -> Iterator[Tensor]:
        while (slot := self._wait_for_slot()) is not None:
            yield slot.images

    def _wait_for_slot(self) -> _Slot | None:
        """The next slot once it is filled; None after the last."""
        with self._change:
            number = self._requested
            self._requested += 1  # frees the reader's last one
            self._change.notify_all()
            while True:
                if self._failure is not None:
                    raise self._describe_failure() from self._failure
                if self._stopped:
                    raise DataError(f"the reader of {self._source} was closed: open a new one")
                if number < self._begun:
                    slot = self._slots[number % len(self._slots)]
                    if slot.filled == len(slot.rows):
                        return slot
                elif self._exhausted:
                    return None
                alive = [thread.is_alive() for thread in self._threads]
                # once no batch is left threads end, but not before all is filled
                if not (any(alive) if self._exhausted else all(alive)):
                    raise DataError(f"a thread that reads {self._source} died: start again")
                self._change.wait(_ALIVE_SECONDS)

    def _describe_failure(self) -> DataError:
        if isinstance(self._failure, DataError):
            return DataError(str(self._failure))
        return DataError(f"reading {self._source} failed: {self._failure!r}")

    def _work(self) -> None:
        try:
            with self._worker() as fill:
                while (piece := self._next_piece()) is not None:
                    slot, part = piece
                    fill(slot.rows[part], slot.images[part].numpy())
                    with self._change:
                        slot.filled += part.stop - part.start
                        if slot.filled == len(slot.rows):
                            self._change.notify_all()
        # of any kind: it is raised in the reader
        except BaseException as failure:
            with self._change:
                self._failure = failure
                self._change.notify_all()

    def _next_piece(self) -> tuple[_Slot, slice] | None:
        with self._change:
            while not (self._stopped or self._failure):
                slot = self._slots[(self._begun - 1) % len(self._slots)]
                if slot.started < len(slot.rows):
                    start = slot.started
                    slot.started = min(start + _PIECE, len(slot.rows))
                    return slot, slice(start, slot.started)
                if self._exhausted:
                    return None
                # the slot of the batch before the last one requested is free again
                if self._begun < max(self._requested - 1, 0) + len(self._slots):
                    self._begin_batch()
                else:
                    self._change.wait()
        return None

    def _begin_batch(self) -> None:
        rows = next(self._row_batches, None)
        if rows is None:
            self._exhausted = True
        else:
            slot = self._slots[self._begun % len(self._slots)]
            if slot.buffer is None or len(slot.buffer) < len(rows):
                shape = (len(rows), *self._shape)
                slot.buffer = torch.empty(shape, dtype=torch.uint8, **self._memory)
            slot.rows = np.ascontiguousarray(rows, np.int64)
            slot.started = slot.filled = 0
            self._begun += 1
        self._change.notify_all()
