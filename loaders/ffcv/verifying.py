"""A packed file read back and compared with what was to be written."""

import mmap
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...common.errors import DataError
from ...common.hardware import usable_cores
from .library import ALLOC_TABLE_TYPE, Reader
from .writing import FIELDS, EncodedImages

_DECODED_AGAIN = 32  # images, spread over the file

Ranges = tuple[tuple[int, int], ...]


def verify_packed(path: Path, images: EncodedImages) -> Ranges:
    """Read a whole packed file back and compare it with what was to be written.

    The checksum and label of every image are compared, and for some images the bytes, with
    those of the image file decoded again.

    Returns:
        ``(start, end)`` of the parts of the file that are no images.

    Raises:
        DataError: if anything differs.
    """
    reader = Reader(str(path))
    count, table = len(images), reader.alloc_table
    order = np.argsort(table["sample_id"], kind="stable")
    image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
    complete = (
        tuple(reader.field_names) == FIELDS
        and len(reader.metadata) == len(table) == count
        and (table["sample_id"][order] == np.arange(count)).all()
        and (table["ptr"][order] == image["data_ptr"]).all()
        and (label.reshape(-1) == images.labels).all()
    )
    if not complete:
        raise DataError(f"{path} was not written completely: pack again")
    starts, ends = image["data_ptr"], image["data_ptr"] + table["size"][order]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _compare_images(
            path, content, list(zip(starts.tolist(), ends.tolist(), strict=True)), images
        )
    end = path.stat().st_size
    head = reader.header.nbytes + reader.field_descriptors.nbytes + reader.metadata.nbytes
    return ((0, head), (end - count * ALLOC_TABLE_TYPE.itemsize, end))


def _compare_images(
    path: Path, content: mmap.mmap, ranges: list[tuple[int, int]], images: EncodedImages
) -> None:
    def compute_checksum(stored_range: tuple[int, int]) -> int:
        with memoryview(content) as view, view[slice(*stored_range)] as stored:
            return zlib.crc32(stored)

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = np.fromiter(pool.map(compute_checksum, ranges), np.uint32, len(ranges))
    wrong = np.flatnonzero(found != images.crc32)
    if len(wrong):
        raise DataError(
            f"{path} does not hold what was written, image {wrong[0]} first: the disk may be full "
            "or failing; pack again"
        )
    for row in np.unique(np.linspace(0, len(ranges) - 1, _DECODED_AGAIN, dtype=int)).tolist():
        if content[slice(*ranges[row])] != images.encode(row).content.tobytes():
            raise DataError(f"{images.path(row)} changed while it was packed: pack again")
