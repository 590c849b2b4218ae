"""Batches decoded from image files by worker processes."""

import logging
import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...common.errors import DataError
from ...common.hardware import usable_cores
from ..protocol import IntArray
from .decoding import decode_image
from .trees import ImageTree

log = logging.getLogger("m3d_fast")

# images a worker decodes at a time: workers, not batches, bound what is decoded ahead
_PIECE = 32
_PIECES_AHEAD = 2  # per worker

# up to this many rows in all are decoded in threads: starting processes takes longer
_SHORT = 256

# workers are forks of a server that has imported these: 25 ms each instead of 2 s
_PRELOADED = ["m3d_fast.loaders.image_files.worker_images", "PIL.Image"]
_main_lock = threading.Lock()


class FolderImages:
    """A ``BackEnd`` over image files: ``decode_image`` in worker processes of a ``DataLoader``.

    Memory beside the current batch: at most ``workers * 64`` decoded images.

    Args:
        tree: files by class.
        size: side of the images in pixels.
        workers: processes that decode, at most one per core; 0 for threads of this process, which
            decode while the reader waits; None for one per core.

    Raises:
        DataError: if ``workers`` is negative.
    """

    name = "image files"

    def __init__(self, tree: ImageTree, size: int, *, workers: int | None = None) -> None:
        if workers is not None and workers < 0:
            raise DataError(f"the number of workers must be 0 or more, got {workers}")
        self.class_names = tuple(tree.files)
        self.class_sizes = tuple(len(members) for members in tree.files.values())
        self.image_shape = (3, size, size)
        self.layout = torch.contiguous_format
        self.source = str(tree.folder)
        self.workers = usable_cores() if workers is None else min(workers, usable_cores())
        if workers is not None and workers > self.workers:
            log.info("%d workers were requested, there are %d cores", workers, self.workers)
        self._files = list(tree.files.values())
        self._ends = np.cumsum(self.class_sizes)

    @contextmanager
    def read(self, row_batches: Iterator[IntArray]) -> Iterator[Iterator[Tensor]]:
        """Decode these rows, in their order, ahead of the reader; see ``BackEnd``."""
        first, complete = _read_ahead(row_batches)
        lengths: deque[int] = deque()
        paths = self._divide(chain(first, row_batches), lengths)
        pieces = _decode(paths, self.image_shape[-1], 0 if complete else self.workers)
        try:
            yield self._assemble(pieces, lengths)
        finally:
            # workers end now, not at the next garbage collection
            if hasattr(pieces, "_shutdown_workers"):
                pieces._shutdown_workers()

    def _divide(self, row_batches: Iterable[IntArray], lengths: deque[int]) -> Iterator[list[Path]]:
        """Files that are decoded together; appends the length of every batch to ``lengths``."""
        for rows in row_batches:
            lengths.append(len(rows))
            classes = np.searchsorted(self._ends, rows, side="right")
            within = rows - np.concatenate(([0], self._ends))[classes]
            paths = [self._files[c][i] for c, i in zip(classes, within, strict=True)]
            for start in range(0, max(1, len(paths)), _PIECE):
                yield paths[start : start + _PIECE]

    def _assemble(self, pieces: Iterator[Any], lengths: deque[int]) -> Iterator[Tensor]:
        batch = torch.empty((0, *self.image_shape), dtype=torch.uint8)
        filled = 0
        while True:
            try:
                piece = next(pieces)
            except StopIteration:
                return
            # RuntimeError: torch found a worker dead; the others: it died while sending images
            except (RuntimeError, EOFError, OSError) as cause:
                raise DataError(
                    f"a process decoding images of {self.source} ended ({cause!r}): it may have "
                    "been out of memory; resume with fewer --workers"
                ) from cause
            if isinstance(piece, DataError):
                raise piece
            if filled == 0:
                length = lengths.popleft()
                if len(batch) < length:
                    batch = torch.empty((length, *self.image_shape), dtype=torch.uint8)
            batch[filled : filled + len(piece)] = piece
            filled += len(piece)
            if filled == length:
                filled = 0
                yield batch[:length]


def _read_ahead(row_batches: Iterator[IntArray]) -> tuple[list[IntArray], bool]:
    """The first arrays of rows, and whether there are no others."""
    first: list[IntArray] = []
    while sum(map(len, first)) <= _SHORT:
        try:
            first.append(next(row_batches))
        except StopIteration:
            return first, True
    return first, False


def _decode(paths: Iterator[list[Path]], size: int, workers: int) -> Iterator[Any]:
    """Decode every list of files into one tensor; a ``DataError`` is an item."""
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        context.set_forkserver_preload(_PRELOADED)
    loader: DataLoader[Any] = DataLoader(
        _Files(size, in_worker=workers > 0),
        batch_sampler=paths,
        num_workers=workers,
        collate_fn=_return_unchanged,
        multiprocessing_context=context,
        prefetch_factor=_PIECES_AHEAD if workers else None,
        worker_init_fn=_leave_interrupts_to_the_reader,
        # otherwise the global generator would be advanced
        generator=torch.Generator(),
    )
    with _hide_main():
        return iter(loader)


class _Files(Dataset[Any]):
    """Lists of files as one uint8 tensor ``(n, 3, size, size)`` each."""

    def __init__(self, size: int, *, in_worker: bool) -> None:
        self.size, self.in_worker = size, in_worker

    def __getitems__(self, paths: list[Path]) -> Tensor | DataError:
        shape = (len(paths), 3, self.size, self.size)
        try:
            images = torch.empty(shape, dtype=torch.uint8)
            # in the queue's own thread a failure would be lost, and the reader would wait for ever
            if self.in_worker:
                images.share_memory_()
        except RuntimeError as cause:
            return DataError(f"no (shared) memory for {len(paths)} images: {cause}")
        decode_one = partial(decode_image, size=self.size)
        try:
            with ThreadPoolExecutor(1 if self.in_worker else usable_cores()) as pool:
                for target, image in zip(images, pool.map(decode_one, paths), strict=True):
                    target.copy_(image)
        except DataError as error:
            return error
        return images


def _return_unchanged(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_reader(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the reader may have to finish its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _print_unless_disconnected


def _print_unless_disconnected(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an error, but not that an interrupted reader hung up while it was handed a tensor.

    The thread of torch that hands it over would print that.
    """
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, traceback)


@contextmanager
def _hide_main() -> Iterator[None]:
    """Hide the user's script, which may have no main guard, from processes started within."""
    with _main_lock:
        main, blank = sys.modules["__main__"], ModuleType("__main__")
        sys.modules["__main__"] = blank
        try:
            yield
        finally:
            sys.modules["__main__"] = main
