"""The file of a pool: trained by the first run that needs it, shared by all others."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...common.errors import UserError
from ...common.tensors import read_tensors
from ...config import ResolvedConfig
from ...loaders import RealImages, file_name
from ...run.cache import describe_images, digest, find_cache, hold
from .pool_training import POOL_FORMAT, PoolTraining, count_stages


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
    start = f"{file_name(config.dataset)}-{config.size}px-{config.network}"
    name = f"{start}-{digest(description)}.safetensors"
    path = find_cache() / "pools" / name
    if not path.exists():
        with hold(path, "the pool"):
            if not path.exists():  # another process may have trained it meanwhile
                PoolTraining(config, real, path, description).run()
    try:
        tensors, metadata = read_tensors(path, POOL_FORMAT)
    except UserError as error:
        raise UserError(f"{error}; remove it, and the next run trains the pool again") from error
    return Pool(tensors["weights"], metadata["seconds"])


def _describe(config: ResolvedConfig, real: RealImages) -> dict[str, Any]:
    """All that the pool's weights depend on, besides the machine."""
    return describe_images(real) | {
        "dataset": config.dataset,
        "size": config.size,
        "network": config.network,
        "networks": config.pool,
        "epochs": config.pool_epochs,
        "stages": count_stages(config),
        "seed": config.seed,
        "arithmetic": f"{config.precision} on {real.device.type}",
    }
