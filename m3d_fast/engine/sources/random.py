"""Random networks (M3D, arXiv 2312.15927; DM, arXiv 2110.04181)."""

from ...common.seeds import generator
from ...config import ResolvedConfig
from ...networks import initialise
from ..embedding import Embedder
from .protocol import ConstantSource


class RandomNetworks(ConstantSource):
    """A new random network every ``ipm`` iterations.

    Args:
        embedder: whose network is redrawn in place.
        config: ``seed`` and ``ipm`` are used.
    """

    def __init__(self, embedder: Embedder, config: ResolvedConfig) -> None:
        self._embedder, self._config = embedder, config
        self._model: int | None = None  # number of the network now drawn

    def load(self, iteration: int) -> None:
        """Draw the network of ``iteration``, a function of the seed and its number alone."""
        model = iteration // self._config.ipm
        if model != self._model:
            stream = generator(self._config.seed, "network", model, device=self._embedder.device)
            initialise(self._embedder.network, stream)
            self._embedder.publish()
            self._model = model
