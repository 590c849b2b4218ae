"""Size of a packed file, estimated before it is written, and free disk space."""

import logging
import shutil
from pathlib import Path

from ...common.errors import DataError
from ..image_files.trees import ImageTree
from .packed_file import PackingRequest
from .storing import encode

log = logging.getLogger("m3d_fast")

_PROBES = 32  # images encoded beforehand, to estimate the size of the file
_INDEX_BYTES = 48  # per image: FFCV's 24 of metadata and 24 of its allocation table
_SMALLEST_PAGE = 8 << 20  # FFCV's own


def page_bytes(largest: int) -> int:
    """Size of a page of the file in bytes; an image lies within one page."""
    return max(_SMALLEST_PAGE, 1 << (largest - 1).bit_length())


def largest_image(request: PackingRequest, tree: ImageTree) -> int:
    """Limit for the bytes of one stored image."""
    if request.store != "original":
        # a JPEG of noise at quality 100 is little larger than its pixels
        return 4 * request.size**2 + 4096
    files = (path.stat().st_size for members in tree.files.values() for path in members)
    # some are encoded again, and may grow
    return max(8 << 20, 2 * max(files))


def check_disk_space(request: PackingRequest, tree: ImageTree, path: Path, workers: int) -> None:
    """Log how large the file will be, and refuse it where it does not fit.

    Raises:
        DataError: if the disk or the shared memory is too small for it.
    """
    count = sum(map(len, tree.files.values()))
    needed = count * (_estimate_bytes(request, tree) + _INDEX_BYTES)
    # every process leaves its last page half empty, and the first is preceded by padding
    needed += (workers + 1) * page_bytes(largest_image(request, tree))
    free = shutil.disk_usage(path.parent).free
    log.info(
        "packing %d images of %s (%s, %d px, %s): %s%.2f GB in %s, %.2f GB are free there",
        count,
        request.dataset,
        request.split,
        request.size,
        request.store,
        "" if request.store == "raw" else "about ",
        needed / 1e9,
        path,
        free / 1e9,
    )
    if needed > free:
        raise DataError(
            f"{path} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on its disk: name "
            "another --out, or take --store jpeg:95 or a smaller --size"
        )
    # in which FFCV's processes write the index together
    memory = Path("/dev/shm")
    if memory.is_dir() and count * _INDEX_BYTES > shutil.disk_usage(memory).free:
        raise DataError(
            f"packing {count} images needs {count * _INDEX_BYTES / 1e6:.0f} MB in {memory}: "
            "enlarge it (a container's --shm-size)"
        )


def _estimate_bytes(request: PackingRequest, tree: ImageTree) -> float:
    """Mean size of a stored image, with the unused part of its page."""
    if request.store == "raw":
        image = 3 * request.size**2
        page = page_bytes(largest_image(request, tree))
        return page / (page // image)
    if request.store == "original":
        sizes = [path.stat().st_size for members in tree.files.values() for path in members]
        return 1.02 * sum(sizes) / len(sizes)
    probes = [members[k] for members in tree.files.values() for k in (0, len(members) // 2, -1)]
    sizes = []
    for path in probes[:: -(-len(probes) // _PROBES)]:
        try:
            sizes.append(encode(path, size=request.size, store=request.store).content.nbytes)
        # reported with all other damaged images later
        except DataError:
            continue
    return 1.1 * sum(sizes) / max(1, len(sizes))
