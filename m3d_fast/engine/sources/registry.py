"""Sources of networks by name."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ...config import ResolvedConfig
from ...loaders import RealImages
from ...networks import build_network
from ...presets import BY_ACCURACY
from ..embedding import Embedder
from .guided import GuidedNetwork
from .pool import PoolNetworks
from .pool_file import open_pool
from .protocol import NetworkSource
from .queue import QueuedNetworks, count_slots
from .random import RandomNetworks
from .real import RealTrainedNetwork
from .synthetic import SyntheticTrainedNetwork

log = logging.getLogger("m3d_fast")

# during the run, on real images of all classes, whatever the classes of a rank
TRAINED_ON_REAL_IMAGES = ("queue", "real")


def build_source(
    config: ResolvedConfig, embedder: Embedder, real: RealImages, images: Callable[[], Tensor]
) -> NetworkSource:
    """The source of the run's networks.

    Args:
        config: ``networks_from`` names it.
        embedder: whose network it writes.
        real: training images of all classes.
        images: returns the decoded images of the condenser's classes, ``(C, m, channels, H, W)``.
    """
    match config.networks_from:
        case "pool":
            return PoolNetworks(embedder, config, real)
        case "queue":
            return QueuedNetworks(embedder, config, real)
        case "real":
            return RealTrainedNetwork(embedder, config, real)
        case "synthetic":
            guided = config.ipm == BY_ACCURACY
            kind = GuidedNetwork if guided else SyntheticTrainedNetwork
            return kind(embedder, config, real, images)
        case _:
            return RandomNetworks(embedder, config)


def network_state_bytes(config: ResolvedConfig, real: RealImages) -> int:
    """Bytes of a checkpoint's networks: float32 weights; what else is kept of those in training."""
    own = 3 * config.pool if config.unrolls else 2  # momentum, and the average of the weights
    trained = {"queue": count_slots(config), "real": 2, "synthetic": own}
    with torch.device("meta"):
        channels = real.image_shape[0]
        network = build_network(config.network, channels, config.size, real.num_classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return 4 * parameters * trained.get(config.networks_from, 0)


def prepare_source(config: ResolvedConfig, real: RealImages) -> None:
    """Do once for all ranks what takes long before a source is built: train the pool."""
    if config.needs_pool:
        pool = open_pool(config, real)
        log.info("pool of %d networks, trained in %.0f s", len(pool.weights), pool.seconds)
