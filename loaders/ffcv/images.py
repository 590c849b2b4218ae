"""Images read from a packed .beton file."""

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
from ..streaming.prefetcher import Fill, Prefetcher
from .packed_file import PackedFile, Sidecar, file_identity


class FfcvImages:
    """Back end over a ``.beton`` file: FFCV's format, native reader and decoder, our iteration.

    FFCV's own loader is not used: it allocates all buffers again every epoch, hangs when one of
    its threads fails, leaks threads when left early and returns garbage for damaged images. Here
    its compiled reading and decoding run in our threads, without the GIL.

    Images are read with ``pread``, not mapped: a file cut while it is open is an error and not
    the end of the process, and resident memory does not grow with what was read. The checksum of
    every image is compared the first time it is read. Before every piece of a batch the file is
    checked: one that was replaced, resized or written to is refused. A change within the file that
    keeps size and time stamp, to an image already compared, is not detected.

    Memory: the index takes 22 bytes per image; within ``read`` four batches are held, and per
    thread one image as stored.

    Args:
        packed: of ``open_packed``.
        workers: threads that decode; None for one per core this process may use.

    Raises:
        DataError: if the file is damaged or was changed since it was opened.
        ModuleNotFoundError: if FFCV is not installed.
    """

    name = "FFCV"
    layout = torch.channels_last  # as stored: pixels are not transposed

    def __init__(self, packed: PackedFile, *, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise DataError(f"at least one worker must read, got {workers}")
        self.workers = workers or usable_cores()
        self._path, self._identity, sidecar = packed
        self.class_names = sidecar.class_names
        self.class_sizes = sidecar.class_sizes
        self.image_shape = (3, sidecar.size, sidecar.size)
        self.source = str(self._path)
        self._index = _Index(self._path, sidecar)
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._compare_identity()
        self._first_rows = np.concatenate(([0], np.cumsum(self.class_sizes)))

    def read(self, row_batches: Iterator[IntArray]) -> AbstractContextManager[Iterator[Tensor]]:
        """Decode these rows, in their order, ahead of the reader; see ``BackEnd``.

        The tensors are page-locked where this process uses CUDA.
        """
        return Prefetcher(
            row_batches,
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
        workspace = native.allocate_workspace(
            index.largest, index.largest_image, int(index.heights.max()), self.image_shape[1]
        )
        with native.jpeg_handle() as handle:

            def fill(rows: IntArray, out: np.ndarray) -> None:
                self._compare_identity()
                self._compare_checksums(rows)
                out = out.transpose(0, 2, 3, 1)  # contiguous, as stored
                done = 0
                while done < len(rows):
                    count, problem = native.decode(
                        rows[done:], *index.columns, self._file, handle, workspace, out[done:]
                    )
                    done += count
                    if problem == native.SHORT_READ:
                        raise self._describe_bad(int(rows[done]), "cannot be read completely")
                    if problem == native.NOT_CLEAN:
                        image = self._decode_with_pillow(int(rows[done]))
                        native.resize_crop(image, workspace[-1], out[done])
                        done += 1

            yield fill

    def _decode_with_pillow(self, row: int) -> np.ndarray:
        """Decode an image with a libjpeg-turbo warning: one with a blemish, or a damaged one."""
        from PIL import Image

        stored = os.pread(self._file, int(self._index.sizes[row]), int(self._index.offsets[row]))
        try:
            with Image.open(io.BytesIO(stored)) as file:
                return np.array(file.convert("RGB"))
        # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        except Exception as cause:
            raise self._describe_bad(row, f"cannot be decoded ({cause})") from cause

    def _compare_identity(self) -> None:
        if file_identity(self._path) != self._identity:
            raise DataError(
                f"{self._path} was replaced, removed or changed while it was open: start again "
                "(with --resume) once nothing writes to it any more"
            )

    def _compare_checksums(self, rows: IntArray) -> None:
        for row in rows[~self._index.compared[rows]]:
            offset, size = int(self._index.offsets[row]), int(self._index.sizes[row])
            stored = os.pread(self._file, size, offset)
            if len(stored) != size:
                raise self._describe_bad(int(row), "cannot be read completely")
            if zlib.crc32(stored) != self._index.checksums[row]:
                raise self._describe_bad(int(row), "is damaged (wrong checksum)")
            self._index.compared[row] = True

    def _describe_bad(self, row: int, what: str) -> DataError:
        self._compare_identity()  # a file that was changed meanwhile is not damaged
        label = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return DataError(
            f"image {row} of {self._path}, number {row - self._first_rows[label]} of class {label} "
            f"({self.class_names[label]}), {what}: delete the file and pack it again"
        )


@functools.cache
def load_ffcv() -> ModuleType:
    """Import FFCV and compile our loop around it, once per process (seconds).

    Importing FFCV loads one of numba's threading layers, of which TBB hangs at exit on one CPU,
    and sets torch's thread count to 1: the layer is chosen before and the count restored.

    Raises:
        ModuleNotFoundError: if FFCV or something it needs is not installed.
    """
    threads = torch.get_num_threads()
    try:
        import numba

        # not by the environment: numba reads all of it again after a change, which fails
        # when the cores of this process have changed in between
        if numba.config.THREADING_LAYER == "default":  # type: ignore[attr-defined]
            numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined]
        from . import native
    finally:
        torch.set_num_threads(threads)
    native.compile_now()
    return native


class _Index:
    """Position and form of every stored image, in row order.

    Attributes:
        offsets: int64, bytes from the start of the file.
        sizes: uint32, bytes.
        heights, widths: uint16, pixels as stored.
        encoded: whether it is a JPEG; raw pixels otherwise.
        checksums: uint32, CRC-32 of the bytes.
        compared: whether the checksum was compared.
        largest, largest_image: maximum bytes of an image as stored and when decoded.
    """

    def __init__(self, path: Path, sidecar: Sidecar) -> None:
        reader = _open_reader(path)
        image, total = reader.metadata["f0"], sum(sidecar.class_sizes)
        if len(image) != total:
            raise _describe_damage(path, f"{len(image)} images instead of {total}")
        self.offsets = image["data_ptr"].astype(np.int64)
        stored = reader.alloc_table["ptr"]
        order = np.argsort(stored)
        found = order[np.searchsorted(stored, image["data_ptr"], sorter=order).clip(0, total - 1)]
        if len(stored) != total or (stored[found] != image["data_ptr"]).any():
            raise _describe_damage(path, "its table does not list every image")
        self.sizes = reader.alloc_table["size"][found].astype(np.uint32)
        self.heights, self.widths = image["height"].copy(), image["width"].copy()
        self.encoded = image["mode"] == 0
        self.checksums = np.asarray(sidecar.crc32, np.uint32)
        self.compared = np.zeros(total, np.bool_)
        decoded = 3 * self.heights.astype(np.int64) * self.widths
        if (self.offsets + self.sizes > path.stat().st_size).any():
            raise _describe_damage(path, "images extend beyond its end")
        if (decoded[~self.encoded] != self.sizes[~self.encoded]).any():
            raise _describe_damage(path, "raw images have other sizes than their pixels")
        self.largest, self.largest_image = int(self.sizes.max()), int(decoded.max())

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.offsets, self.sizes, self.heights, self.widths, self.encoded


def _open_reader(path: Path) -> Any:
    load_ffcv()
    from .library import Reader

    try:
        return Reader(str(path))
    # FFCV parses without checks: a damaged header makes it raise nearly anything
    except Exception as cause:
        raise _describe_damage(path, repr(cause)) from cause


def _describe_damage(path: Path, how: str) -> DataError:
    return DataError(f"the index of {path} is damaged ({how}): delete the file and pack it again")
