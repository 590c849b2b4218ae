"""How are images read from a packed .beton file?"""

import functools
import io
import os
import weakref
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.errors import DataError
from ...common.hardware import usable_cores
from ..protocol import IntArray
from ..streaming.ring import Fill, Ring
from .packed_file import Packed, open_packed


class FfcvImages:
    """Back end over a ``.beton`` file: FFCV's format, native reader and decoder, our iteration.

    FFCV's own loader cannot be used as it is: it allocates all buffers anew every epoch, hangs
    when one of its threads fails, leaks threads when left early and shows garbage for damaged
    images. Here its compiled reading and decoding run in threads of ours, without the GIL.

    Images are read with ``pread``, not mapped: a file cut while it is open is an error and not
    the end of the process, and resident memory does not grow with what was read. The checksum of
    every image is compared the first time it is read. Before every piece of a batch the file is
    looked at: replaced, resized or written to, it is refused. What remains unnoticed is a change
    within the file that keeps size and time stamp, to an image already compared.

    Memory: the index takes 22 bytes an image; within ``read`` four batches are held, and per
    thread one image as stored.

    Args:
        path: the ``.beton`` file, its sidecar beside it.
        dataset: what the file must hold; None for anything.
        size: side in pixels its images must have; None for any.
        workers: threads that decode; None for one per core this process may use.

    Raises:
        DataError: if file or sidecar is missing, damaged or of another data set.
        ModuleNotFoundError: if FFCV is not installed.
    """

    name = "FFCV"
    layout = torch.channels_last  # as stored: nothing is moved that need not be

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dataset: str | None = None,
        size: int | None = None,
        workers: int | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise DataError(f"at least one worker must read, got {workers}")
        self.workers = workers or usable_cores()
        self._path = Path(path)
        self._identity = _identity(self._path)
        self.packed: Packed = open_packed(self._path, dataset=dataset, size=size)
        self.class_names = tuple(self.packed.class_names)
        self.class_sizes = tuple(int(size) for size in self.packed.class_sizes)
        self.image_shape = (3, self.packed.size, self.packed.size)
        self.source = str(self._path)
        self._index = _Index(self._path, self.packed)
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._compare_identity()
        self._first = np.concatenate(([0], np.cumsum(self.class_sizes)))

    def read(self, plan: Iterator[IntArray]) -> AbstractContextManager[Iterator[Tensor]]:
        """Decode the rows that ``plan`` names, in its order, ahead of the reader; see ``BackEnd``.

        The tensors are page-locked where this process uses CUDA.
        """
        return Ring(
            plan,
            self._worker,
            self.image_shape,
            source=self.source,
            workers=self.workers,
            pinned=torch.cuda.is_initialized(),
            layout=self.layout,
        )

    @contextmanager
    def _worker(self) -> Iterator[Fill]:
        native = load_ffcv()
        index = self._index
        room = native.room_for(
            index.largest, index.largest_image, int(index.heights.max()), self.packed.size
        )
        with native.jpeg_handle() as handle:

            def fill(rows: IntArray, out: np.ndarray) -> None:
                self._compare_identity()
                self._compare_checksums(rows)
                out = out.transpose(0, 2, 3, 1)  # contiguous, as stored
                done = 0
                while done < len(rows):
                    count, problem = native.decode(
                        rows[done:], *index.columns, self._file, handle, room, out[done:]
                    )
                    done += count
                    if problem == native.SHORT_READ:
                        raise self._bad(int(rows[done]), "cannot be read whole")
                    if problem == native.NOT_CLEAN:
                        image = self._by_pillow(int(rows[done]))
                        native.resize_crop(image, room[-1], out[done])
                        done += 1

            yield fill

    def _by_pillow(self, row: int) -> np.ndarray:
        """Decode what libjpeg-turbo complained of: whole but for a blemish, or damaged."""
        from PIL import Image

        stored = os.pread(self._file, int(self._index.sizes[row]), int(self._index.offsets[row]))
        try:
            with Image.open(io.BytesIO(stored)) as file:
                return np.array(file.convert("RGB"))
        # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        except Exception as cause:
            raise self._bad(row, f"cannot be decoded ({cause})") from cause

    def _compare_identity(self) -> None:
        if _identity(self._path) != self._identity:
            raise DataError(
                f"{self._path} was replaced, removed or changed while it was open: start again "
                "(from the checkpoint) once nothing writes to it any more"
            )

    def _compare_checksums(self, rows: IntArray) -> None:
        for row in rows[~self._index.compared[rows]]:
            offset, size = int(self._index.offsets[row]), int(self._index.sizes[row])
            stored = os.pread(self._file, size, offset)
            if len(stored) != size:
                raise self._bad(int(row), "cannot be read whole")
            if zlib.crc32(stored) != self._index.checksums[row]:
                raise self._bad(int(row), "is damaged (wrong checksum)")
            self._index.compared[row] = True

    def _bad(self, row: int, what: str) -> DataError:
        self._compare_identity()  # what was changed meanwhile is not damaged
        label = int(np.searchsorted(self._first, row, side="right")) - 1
        return DataError(
            f"image {row} of {self._path}, number {row - self._first[label]} of class {label} "
            f"({self.class_names[label]}), {what}: delete the file and pack it again"
        )


@functools.cache
def load_ffcv() -> ModuleType:
    """Import FFCV and compile our loop around it, once in a process (seconds).

    Importing FFCV loads one of numba's threading layers, of which TBB hangs at exit on one CPU,
    and sets torch's thread count to 1: the layer is chosen before and the count put back.

    Raises:
        ModuleNotFoundError: if FFCV or something it needs is not installed.
    """
    threads = torch.get_num_threads()
    try:
        import numba

        # not by the environment: a change of that makes numba read everything again, which fails
        # when this process got other cores in between
        if numba.config.THREADING_LAYER == "default":  # type: ignore[attr-defined]
            numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined]
        from . import native
    finally:
        torch.set_num_threads(threads)
    native.compile_now()
    return native


class _Index:
    """Where every image lies in the file and how it is stored, in row order.

    Attributes:
        offsets: int64, bytes from the start of the file.
        sizes: uint32, bytes.
        heights, widths: uint16, pixels as stored.
        encoded: whether it is a JPEG; raw pixels otherwise.
        checksums: uint32, CRC-32 of the bytes.
        compared: whether the checksum was found right.
        largest, largest_image: most bytes of an image as stored and when decoded.
    """

    def __init__(self, path: Path, packed: Packed) -> None:
        reader = _opened(path)
        image, total = reader.metadata["f0"], sum(packed.class_sizes)
        if len(image) != total:
            raise _damaged_index(path, f"{len(image)} images instead of {total}")
        self.offsets = image["data_ptr"].astype(np.int64)
        places = reader.alloc_table["ptr"]
        order = np.argsort(places)
        found = order[np.searchsorted(places, image["data_ptr"], sorter=order).clip(0, total - 1)]
        if len(places) != total or (places[found] != image["data_ptr"]).any():
            raise _damaged_index(path, "its table does not say where every image lies")
        self.sizes = reader.alloc_table["size"][found].astype(np.uint32)
        self.heights, self.widths = image["height"].copy(), image["width"].copy()
        self.encoded = image["mode"] == 0
        self.checksums = np.asarray(packed.crc32, np.uint32)
        self.compared = np.zeros(total, np.bool_)
        decoded = 3 * self.heights.astype(np.int64) * self.widths
        if (self.offsets + self.sizes > path.stat().st_size).any():
            raise _damaged_index(path, "images lie beyond its end")
        if (decoded[~self.encoded] != self.sizes[~self.encoded]).any():
            raise _damaged_index(path, "raw images have other sizes than their pixels")
        self.largest, self.largest_image = int(self.sizes.max()), int(decoded.max())

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.offsets, self.sizes, self.heights, self.widths, self.encoded


def _opened(path: Path) -> Any:
    load_ffcv()
    from ffcv.reader import Reader

    try:
        return Reader(str(path))
    # FFCV parses without looking: a damaged header makes it raise nearly anything
    except Exception as cause:
        raise _damaged_index(path, repr(cause)) from cause


def _damaged_index(path: Path, how: str) -> DataError:
    return DataError(f"the index of {path} is damaged ({how}): delete the file and pack it again")


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()  # nothing there
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
