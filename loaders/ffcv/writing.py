"""Images written by FFCV's writer, with every failure reported instead of waited for."""

import ctypes
import multiprocessing
import signal
import zlib
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...common.errors import DataError
from ...common.processes import end_with_parent
from ...common.progress import Progress
from ...common.signals import stop_signals
from ..image_files.trees import ClassFiles, ImageTree
from .disk_space import page_bytes
from .library import DatasetWriter, IntField, MemoryAllocator, RGBImageField
from .storing import RAW_MODE, Stored, encode

FIELDS = ("image", "label")

_CHUNK = 32  # images a worker takes at a time

# stored instead of a damaged image: what this pass writes is discarded
_PLACEHOLDER = Stored(RAW_MODE, 1, 1, np.zeros(3, np.uint8))

_fork = multiprocessing.get_context("fork")


class EncodedImages:
    """The samples of FFCV's writer: sample ``i`` is image ``i`` as stored, and its label.

    A damaged image is recorded, not raised, and from then on images are only verified: the writer
    never ends after an exception, and all damaged images are to be named.

    Args:
        tree: files by class.
        size: side of the crop in pixels.
        store: "raw", "jpeg:Q" or "original".
        largest: limit for the bytes of one image.
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
        """Checksums of the stored bytes of every image, uint32 ``(N,)``."""
        return np.frombuffer(memoryview(self._crc32), dtype=np.uint32)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of every image, int64 ``(N,)``."""
        return np.repeat(np.arange(len(self._files)), [len(members) for members in self._files])

    def path(self, row: int) -> Path:
        """File of an image."""
        label = self._find_label(row)
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
            image = _PLACEHOLDER
        self._crc32[row] = zlib.crc32(image.content.data)
        return image, self._find_label(row)

    def _find_label(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))


def write_images(images: EncodedImages, path: Path, *, workers: int, label: str) -> dict[int, str]:
    """Write ``path``, showing progress; returns the damaged images by row, with the reason.

    With damaged images the file cannot be used.

    Raises:
        DataError: if a process fails or dies; nothing is left running.
    """
    writer = _Writer(
        str(path), _create_fields(), page_size=page_bytes(images.largest), num_workers=workers
    )
    writer.label = label
    writer.from_indexed_dataset(images, chunksize=_CHUNK)
    return dict(sorted(writer.bad.items()))


def _create_fields() -> dict[str, Any]:
    image = RGBImageField()
    # on the instance: a subclass would be written as a type unknown to FFCV's readers
    image.encode = _store
    return dict(zip(FIELDS, (image, IntField()), strict=True))


def _store(destination: Any, image: Stored, malloc: Any) -> None:
    destination["mode"] = image.mode
    destination["height"], destination["width"] = image.height, image.width
    destination["data_ptr"], storage = malloc(image.content.nbytes)
    storage[:] = image.content


class _Writer(DatasetWriter):
    """FFCV's writer, except that a worker that fails or dies ends it at once."""

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
                # raised within what Python runs around a fork, an interruption would be lost;
                # with signals blocked, another thread of the process would get them
                with stop_signals(patient=True) as interrupted:
                    process.start()
                    workers.append((process, ours))
                    # closed before the next fork, so that a death is the end of this pipe
                    theirs.close()
                if interrupted():
                    raise KeyboardInterrupt
            self.finalize(self._collect(workers, done))
        finally:
            for process, _ in workers:
                process.kill()
                process.join()
            todo.cancel_join_thread()
            self.metadata_sm.close()
            self.metadata_sm.unlink()

    def _collect(self, workers: Sequence[tuple[Any, Connection]], done: Any) -> list[Any]:
        allocations: list[Any] = []
        waiting = {pipe: process for process, pipe in workers}
        with Progress(self.label, self.num_samples, last_line=False) as progress:
            while waiting:
                for pipe in wait(list(waiting), timeout=0.1):
                    assert isinstance(pipe, Connection)
                    allocated, bad = _receive(pipe, waiting.pop(pipe))
                    allocations += allocated
                    self.bad |= bad
                progress.update(done.value)
        return allocations


def _receive(pipe: Connection, process: Any) -> tuple[list[Any], dict[int, str]]:
    try:
        result = pipe.recv()
    except EOFError as cause:
        process.join()
        raise DataError(
            f"a packing process ended with code {process.exitcode}: it may have been killed "
            "because memory ran out; pack again, with fewer --workers"
        ) from cause
    if isinstance(result, str):
        raise DataError(f"packing failed: {result}")
    return result


def _work(work_fn: Any, shared: tuple[Any, ...], results: Connection, images: Any) -> None:
    """Do FFCV's work in a separate process, then send one message, a string if it failed."""
    end_with_parent()
    # Ctrl-C reaches the whole process group; the parent ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    outbox = SimpleNamespace(put=lambda allocations: results.send((allocations, images.bad)))
    try:
        work_fn(*shared, outbox, images)
    # sent to the parent, which raises it
    except Exception as failure:
        results.send(f"{type(failure).__name__}: {failure}")
