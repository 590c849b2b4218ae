"""The file of a pool: trained by the first run that needs it, shared by all others."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...common.errors import UserError
from ...common.files import lock_file
from ...common.tensors import read_tensors
from ...config import ResolvedConfig
from ...loaders import RealImages, file_name
from ...loaders.download import CACHE
from .pool_training import POOL_FORMAT, PoolTraining, count_stages

log = logging.getLogger("m3d_fast")

CACHE_VARIABLE = "M3D_FAST_CACHE"
SEEN = 64  # images that tell one training set from another, besides its sizes


@dataclass(frozen=True)
class Pool:
    """Networks as they were drawn, and after equal parts of their training.

    Attributes:
        weights: float32 ``(networks, 1 + stages, parameters)``, views of the mapped file.
        seconds: that the training took, on the machine where it ran.
    """

    weights: Tensor
    seconds: float


def open_pool(config: ResolvedConfig, real: RealImages) -> Pool:
    """Read the pool of these settings and images, after training it if there is none.

    Runs and ranks that need the same pool at the same time train it once: the others wait.

    Args:
        config: ``dataset``, ``size``, ``network``, ``seed``, ``precision`` and the options of the
            pool are used.
        real: training images of all classes.

    Raises:
        UserError: if its file is damaged, or cannot be written or locked.
        Interrupted: after Ctrl-C or SIGTERM, with what is trained saved.
    """
    description = _describe(config, real)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    name = f"{file_name(config.dataset)}-{config.size}px-{config.network}-{digest}.safetensors"
    path = find_cache() / "pools" / name
    if not path.exists():
        with _lock(path):
            if not path.exists():  # another process may have trained it meanwhile
                PoolTraining(config, real, path, description).run()
    try:
        tensors, metadata = read_tensors(path, POOL_FORMAT)
    except UserError as error:
        raise UserError(f"{error}; remove it, and the next run trains the pool again") from error
    return Pool(tensors["weights"], metadata["seconds"])


def find_cache() -> Path:
    """The folder of what is computed once for many runs: ``$M3D_FAST_CACHE``, or below the home."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given or CACHE).expanduser()


def _describe(config: ResolvedConfig, real: RealImages) -> dict[str, Any]:
    """All that the pool's weights depend on, besides the machine."""
    rows = np.linspace(0, sum(real.class_sizes) - 1, SEEN).astype(np.int64)
    with real.read_rows(lambda: iter([rows])) as batches:
        seen = hashlib.sha256(next(batches).cpu().contiguous().numpy().tobytes()).hexdigest()
    return {
        "dataset": config.dataset,
        "images": seen,
        "class_sizes": list(real.class_sizes),
        "size": config.size,
        "network": config.network,
        "networks": config.pool,
        "epochs": config.pool_epochs,
        "stages": count_stages(config),
        "seed": config.seed,
        "arithmetic": f"{config.precision} on {real.device.type}",
    }


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the pool at ``path`` for this process, waiting while another one trains it."""
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            if not lock_file(file.fileno()):
                log.info("waiting for another process that trains the pool %s", path)
                lock_file(file.fileno(), wait=True)
            yield
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be written or locked ({error.strerror or error}); set "
            f"{CACHE_VARIABLE} to a folder for pools of networks"
        ) from error
