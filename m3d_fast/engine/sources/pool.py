"""A pool of networks trained before the run (DANCE, IJCAI 2024; NCFM, arXiv 2502.20653)."""

import numpy as np
import torch

from ...common.seeds import derive_seed
from ...config import ResolvedConfig
from ...loaders import RealImages
from ..embedding import Embedder
from .pool_file import open_pool
from .protocol import ConstantSource
from .weights import Weights


class PoolNetworks(ConstantSource):
    """Every ``ipm`` iterations a network of the pool at random.

    With ``pool_stages`` 0 its weights are ``u * drawn + (1 - u) * trained`` with ``u`` uniform in
    [0, 1), as published; otherwise those of one of its stages along the training, at random. The
    embedder's expert is the same network after all of its training.

    Args:
        embedder: whose network and expert are written.
        config: resolved settings.
        real: training images of all classes, on which the pool is trained if no run did it before.
    """

    def __init__(self, embedder: Embedder, config: ResolvedConfig, real: RealImages) -> None:
        self._embedder, self._config = embedder, config
        pool = open_pool(config, real)
        self.pretraining_seconds = pool.seconds
        self._weights = pool.weights.to(embedder.device)
        self._target = Weights(embedder.network.parameters())
        expert = embedder.expert
        self._expert = None if expert is None else Weights(expert.parameters())
        self._model: int | None = None  # number of the choice now written

    def load(self, iteration: int) -> None:
        """Write the network of ``iteration``, a function of the seed and its number alone."""
        model = iteration // self._config.ipm
        if model == self._model:
            return
        rng = np.random.default_rng(derive_seed(self._config.seed, "pool-choice", model))
        drawn, *stages = self._weights[int(rng.integers(len(self._weights)))]
        if self._config.pool_stages:
            self._target.write(stages[int(rng.integers(len(stages)))])
        else:
            self._target.write(torch.lerp(stages[-1], drawn, rng.random()))
        self._embedder.publish()
        if self._expert is not None:
            self._expert.write(stages[-1])
        self._model = model
