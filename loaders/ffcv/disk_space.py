"""How large will a packed file be, and does the disk hold it?"""

import logging
import shutil
from pathlib import Path

from ...common.errors import DataError
from ..image_files.trees import ImageTree
from .packed_file import Packed
from .storing import encode

log = logging.getLogger("m3d_fast")

_PROBES = 32  # images encoded beforehand, to estimate the size of the file
_INDEX_BYTES = 48  # per image: FFCV's 24 of metadata and 24 of its allocation table
_SMALLEST_PAGE = 8 << 20  # FFCV's own


def page_bytes(largest: int) -> int:
    """Page of the file in bytes: an image lies within one."""
    return max(_SMALLEST_PAGE, 1 << (largest - 1).bit_length())


def largest_image(plan: Packed, tree: ImageTree) -> int:
    """Bytes that one stored image may take."""
    if plan.store != "original":
        # a JPEG of noise at quality 100 is no larger than its pixels by much
        return 4 * plan.size**2 + 4096
    files = (path.stat().st_size for members in tree.files.values() for path in members)
    # some are encoded anew, and may grow
    return max(8 << 20, 2 * max(files))


def refuse_without_disk(plan: Packed, tree: ImageTree, path: Path, workers: int) -> None:
    """Say how large the file will be.

    Raises:
        DataError: if the disk or the shared memory is too small for it.
    """
    count = sum(map(len, tree.files.values()))
    needed = count * (_image_bytes(plan, tree) + _INDEX_BYTES)
    # every process leaves its last page half empty, and the first is preceded by padding
    needed += (workers + 1) * page_bytes(largest_image(plan, tree))
    free = shutil.disk_usage(path.parent).free
    log.info(
        "packing %d images of %s (%s, %d px, %s): %s%.2f GB in %s, %.2f GB are free there",
        count,
        plan.dataset,
        plan.split,
        plan.size,
        plan.store,
        "" if plan.store == "raw" else "about ",
        needed / 1e9,
        path,
        free / 1e9,
    )
    if needed > free:
        raise DataError(
            f"{path} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on its disk: name "
            "another --out, or take --store jpeg:95 or a smaller --size"
        )
    # where FFCV's processes fill in the index together
    memory = Path("/dev/shm")
    if memory.is_dir() and count * _INDEX_BYTES > shutil.disk_usage(memory).free:
        raise DataError(
            f"packing {count} images needs {count * _INDEX_BYTES / 1e6:.0f} MB in {memory}: "
            "enlarge it (a container's --shm-size)"
        )


def _image_bytes(plan: Packed, tree: ImageTree) -> float:
    """Mean size of a stored image with what its page wastes."""
    if plan.store == "raw":
        image = 3 * plan.size**2
        page = page_bytes(largest_image(plan, tree))
        return page / (page // image)
    if plan.store == "original":
        sizes = [path.stat().st_size for members in tree.files.values() for path in members]
        return 1.02 * sum(sizes) / len(sizes)
    probes = [members[k] for members in tree.files.values() for k in (0, len(members) // 2, -1)]
    sizes = []
    for path in probes[:: -(-len(probes) // _PROBES)]:
        try:
            sizes.append(encode(path, size=plan.size, store=plan.store).content.nbytes)
        # named with all other damaged images later
        except DataError:
            continue
    return 1.1 * sum(sizes) / max(1, len(sizes))
