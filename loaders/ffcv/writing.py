"""How are images written by FFCV, without its ways of waiting for ever?"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.memory_allocator import MemoryAllocator
from ffcv.writer import DatasetWriter
from tqdm import tqdm

from ...common.errors import DataError
from ..image_files.trees import ClassFiles, ImageTree
from .disk_space import page_bytes
from .storing import RAW_MODE, Stored, encode

log = logging.getLogger("m3d_fast")

FIELDS = ("image", "label")

_CHUNK = 32  # images a worker takes at a time
_PLAIN_SECONDS = 10.0  # between lines where there is no terminal
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)

# read instead of an image that cannot be: what is written of this pass is thrown away
_NOTHING = Stored(RAW_MODE, 1, 1, np.zeros(3, np.uint8))

_fork = multiprocessing.get_context("fork")


class EncodedImages:
    """What FFCV's writer asks for: sample ``i`` is image ``i`` as stored, and its label.

    A damaged image is noted, not raised, and from then on images are only verified: a writer that
    meets an exception never ends, and all damaged images are to be named.

    Args:
        tree: files by class.
        size: side of the crop in pixels.
        store: "raw", "jpeg:Q" or "original".
        largest: bytes that one image may take.
    """

    def __init__(self, tree: ImageTree, *, size: int, store: str, largest: int) -> None:
        self.size, self.store, self.largest = size, store, largest
        self.bad: dict[int, str] = {}
        self._files: list[ClassFiles] = list(tree.files.values())
        self._ends = np.cumsum([len(members) for members in self._files])
        # shared with the processes that are forked
        self._crc32 = _fork.RawArray(ctypes.c_uint32, len(self))
        self._damage = _fork.RawValue(ctypes.c_bool, False)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def crc32(self) -> npt.NDArray[np.uint32]:
        """Of the stored bytes of every image, uint32 ``(N,)``."""
        return np.frombuffer(memoryview(self._crc32), dtype=np.uint32)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Of every image, int64 ``(N,)``."""
        return np.repeat(np.arange(len(self._files)), [len(members) for members in self._files])

    def path(self, row: int) -> Path:
        """File of an image."""
        label = self._label(row)
        return self._files[label][row - int(self._ends[label])]

    def encode(self, row: int) -> Stored:
        """One image as stored.

        Raises:
            DataError: if it cannot be decoded or is too large.
        """
        path = self.path(row)
        image = encode(path, size=self.size, store=self.store)
        if image.content.nbytes > self.largest:
            raise DataError(
                f"the image {path} takes {image.content.nbytes / 1e6:.0f} MB, an image may take "
                f"{self.largest / 1e6:.0f} MB: shrink or remove it"
            )
        return image

    def __getitem__(self, row: int) -> tuple[Stored, int]:
        try:
            image = self.encode(row)
        except DataError as error:
            self.bad[int(row)] = str(error)
            self._damage.value = True
        if self._damage.value:
            image = _NOTHING
        self._crc32[row] = zlib.crc32(image.content.data)
        return image, self._label(row)

    def _label(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))


def write_images(images: EncodedImages, path: Path, *, workers: int, label: str) -> dict[int, str]:
    """Write ``path``, showing progress; returns the damaged images by row, with the reason.

    With damaged images the file is of no use.

    Raises:
        DataError: if a process fails or dies; nothing is left running.
    """
    writer = _Writer(
        str(path), _fields(), page_size=page_bytes(images.largest), num_workers=workers
    )
    writer.label = label
    writer.from_indexed_dataset(images, chunksize=_CHUNK)
    return dict(sorted(writer.bad.items()))


def _fields() -> dict[str, Any]:
    image = RGBImageField()
    # on the instance: a subclass would be written as a type that FFCV's readers do not know
    image.encode = _store
    return dict(zip(FIELDS, (image, IntField()), strict=True))


def _store(destination: Any, image: Stored, malloc: Any) -> None:
    destination["mode"] = image.mode
    destination["height"], destination["width"] = image.height, image.width
    destination["data_ptr"], storage = malloc(image.content.nbytes)
    storage[:] = image.content


class _Writer(DatasetWriter):
    """FFCV's writer with its waiting replaced: a worker that fails or dies ends it at once."""

    label: str
    bad: dict[int, str]

    def _write_common(
        self, num_samples: int, queue_content: Iterable[Any], work_fn: Any, extra: Any
    ) -> None:
        self.num_samples, self.bad = num_samples, {}
        self.prepare()
        todo = _fork.Queue()
        for item in (*queue_content, *[None] * self.num_workers):
            todo.put(item)
        done = _fork.Value(ctypes.c_uint64, 0)
        allocator = MemoryAllocator(self.fname, self.data_region_start, self.page_size)
        shared = (todo, self.metadata_sm, self.metadata_type, self.fields, allocator, done)
        workers: list[tuple[Any, Connection]] = []
        try:
            for _ in range(self.num_workers):
                ours, theirs = _fork.Pipe(duplex=False)
                process = _fork.Process(target=_work, args=(work_fn, shared, theirs, *extra))
                with _put_off():
                    process.start()
                    workers.append((process, ours))
                    # closed before the next fork, so that a death is the end of this pipe
                    theirs.close()
            self.finalize(self._results(workers, done))
        finally:
            for process, _ in workers:
                process.kill()
                process.join()
            todo.cancel_join_thread()
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _results(self, workers: Sequence[tuple[Any, Connection]], done: Any) -> list[Any]:
        allocations: list[Any] = []
        waiting = {pipe: process for process, pipe in workers}
        with _Progress(self.label, self.num_samples) as progress:
            while waiting:
                for pipe in wait(list(waiting), timeout=0.1):
                    assert isinstance(pipe, Connection)
                    allocated, bad = _received(pipe, waiting.pop(pipe))
                    allocations += allocated
                    self.bad |= bad
                progress.update(done.value)
        return allocations


def _received(pipe: Connection, process: Any) -> tuple[list[Any], dict[int, str]]:
    try:
        result = pipe.recv()
    except EOFError as cause:
        process.join()
        raise DataError(
            f"a packing process ended with code {process.exitcode}: it may have been killed for "
            "want of memory; pack again, with fewer --workers"
        ) from cause
    if isinstance(result, str):
        raise DataError(f"packing failed: {result}")
    return result


def _work(work_fn: Any, shared: tuple[Any, ...], results: Connection, images: Any) -> None:
    """In a process of its own: FFCV's work, then one message, a string if it failed."""
    end_with_parent()
    # Ctrl-C reaches the whole process group; the parent ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    outbox = SimpleNamespace(put=lambda allocations: results.send((allocations, images.bad)))
    try:
        work_fn(*shared, outbox, images)
    # carried to the parent, which raises it
    except Exception as failure:
        results.send(f"{type(failure).__name__}: {failure}")


@contextmanager
def _put_off() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of the block.

    Raised within what Python runs around a fork, an interruption would be lost. Blocking the
    signals is not enough: another thread of the process would get them.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in _INTERRUPTIONS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for signal_number in received:
        signal.raise_signal(signal_number)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have this process get the signal when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(number))
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


class _Progress:
    """A live line with the time left; plain lines where there is no terminal."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._start = self._shown = time.monotonic()
        self._bar = (
            tqdm(desc=label, total=total, unit=" images", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif done and now - self._shown >= _PLAIN_SECONDS:
            rate = done / (now - self._start)
            text = "%s: %d of %d images, %.0f images/s, %.0f s left"
            log.info(text, self._label, done, self._total, rate, (self._total - done) / rate)
            self._shown = now

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
