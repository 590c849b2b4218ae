"""Is what was written what should have been?"""

import mmap
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE

from ...common.errors import DataError
from ...common.hardware import usable_cores
from .writing import FIELDS, EncodedImages

_DECODED_AGAIN = 32  # images, spread over the file

Ranges = tuple[tuple[int, int], ...]


def verified(path: Path, images: EncodedImages) -> Ranges:
    """Read a whole packed file back and compare it with what was to be written.

    Every image's checksum and label are compared, of some images the bytes with those that
    decoding the image file once more gives.

    Returns:
        ``(start, end)`` of the parts of the file that are no images.

    Raises:
        DataError: if anything differs.
    """
    reader = Reader(str(path))
    count, table = len(images), reader.alloc_table
    order = np.argsort(table["sample_id"], kind="stable")
    image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
    whole = (
        tuple(reader.field_names) == FIELDS
        and len(reader.metadata) == len(table) == count
        and (table["sample_id"][order] == np.arange(count)).all()
        and (table["ptr"][order] == image["data_ptr"]).all()
        and (label.reshape(-1) == images.labels).all()
    )
    if not whole:
        raise DataError(f"{path} was not written whole: pack again")
    starts, ends = image["data_ptr"], image["data_ptr"] + table["size"][order]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _compare(path, content, list(zip(starts.tolist(), ends.tolist(), strict=True)), images)
    end = path.stat().st_size
    head = reader.header.nbytes + reader.field_descriptors.nbytes + reader.metadata.nbytes
    return ((0, head), (end - count * ALLOC_TABLE_TYPE.itemsize, end))


def _compare(
    path: Path, content: mmap.mmap, places: list[tuple[int, int]], images: EncodedImages
) -> None:
    def checksum(place: tuple[int, int]) -> int:
        with memoryview(content) as view, view[slice(*place)] as stored:
            return zlib.crc32(stored)

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = np.fromiter(pool.map(checksum, places), np.uint32, len(places))
    wrong = np.flatnonzero(found != images.crc32)
    if len(wrong):
        raise DataError(
            f"{path} does not hold what was written, image {wrong[0]} first: the disk may be full "
            "or failing; pack again"
        )
    for row in np.unique(np.linspace(0, len(places) - 1, _DECODED_AGAIN, dtype=int)).tolist():
        if content[slice(*places[row])] != images.encode(row).content.tobytes():
            raise DataError(f"{images.path(row)} changed while it was packed: pack again")
