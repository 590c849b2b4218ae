"""Sources of networks by name."""

from collections.abc import Callable

from torch import Tensor

from ...config import ResolvedConfig
from ...loaders import RealImages
from ..embedding import Embedder
from .pool import PoolNetworks
from .pool_file import open_pool
from .protocol import NetworkSource
from .queue import QueuedNetworks
from .random import RandomNetworks
from .real import RealTrainedNetwork
from .synthetic import SyntheticTrainedNetwork

# during the run, on real images of all classes, whatever the classes of a rank
TRAINED_ON_REAL_IMAGES = ("queue", "real")


def build_source(
    config: ResolvedConfig, embedder: Embedder, real: RealImages, pixels: Callable[[], Tensor]
) -> NetworkSource:
    """The source of the run's networks.

    Args:
        config: ``networks_from`` names it.
        embedder: whose network it writes.
        real: training images of all classes.
        pixels: returns the synthetic images of the condenser's classes.
    """
    match config.networks_from:
        case "pool":
            return PoolNetworks(embedder, config, real)
        case "queue":
            return QueuedNetworks(embedder, config, real)
        case "real":
            return RealTrainedNetwork(embedder, config, real)
        case "synthetic":
            return SyntheticTrainedNetwork(embedder, config, real, pixels)
        case _:
            return RandomNetworks(embedder, config)


def prepare_source(config: ResolvedConfig, real: RealImages) -> None:
    """Do once for all ranks what takes long before a source is built: train the pool."""
    if config.networks_from == "pool":
        open_pool(config, real)
