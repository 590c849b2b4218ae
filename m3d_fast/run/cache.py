"""Files that are computed once for many runs, in the user's cache."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.files import lock_file
from ..loaders import RealImages
from ..loaders.download import CACHE

log = logging.getLogger("m3d_fast")

CACHE_VARIABLE = "M3D_FAST_CACHE"
SEEN = 64  # images that tell one training set from another, besides its sizes


def find_cache() -> Path:
    """The folder of what is computed once for many runs: ``$M3D_FAST_CACHE``, or below the home."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given or CACHE).expanduser()


def describe_images(real: RealImages) -> dict[str, Any]:
    """What tells a training set from others, for :func:`digest`."""
    rows = np.linspace(0, sum(real.class_sizes) - 1, SEEN).astype(np.int64)
    with real.read_rows(lambda: iter([rows])) as batches:
        seen = hashlib.sha256(next(batches).cpu().contiguous().numpy().tobytes()).hexdigest()
    return {"images": seen, "class_sizes": list(real.class_sizes)}


def digest(description: Mapping[str, Any]) -> str:
    """16 hexadecimal digits for the name of a file, of all that its content depends on."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a file of the cache for this process, waiting while another one computes it.

    Args:
        path: of the file, whose folder is made.
        what: it is, for messages.

    Raises:
        UserError: if it cannot be locked.
    """
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            if not lock_file(file.fileno()):
                log.info("waiting for another process that trains %s %s", what, path)
                lock_file(file.fileno(), wait=True)
            yield
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be written or locked ({error.strerror or error}); set "
            f"{CACHE_VARIABLE} to a folder for networks"
        ) from error
