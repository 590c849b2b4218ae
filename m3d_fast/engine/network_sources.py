"""Where the embedding network of an iteration comes from."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ..common.seeds import generator
from ..config import ResolvedConfig
from ..networks import initialise
from .embedding import Embedder


class NetworkSource(Protocol):
    """Owns the weights of the embedding networks and writes them to the embedder, in place."""

    def load(self, iteration: int) -> None:
        """Make the network of ``iteration`` the embedder's, without waiting for the device."""
        ...

    def update(self, iteration: int) -> None:
        """Train, after the step of ``iteration``, what later iterations embed with."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Weights that the run has changed and a resumed one needs; the same on all ranks."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        ...


class RandomNetworks:
    """A new random network every ``ipm`` iterations (M3D, DM).

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

    def update(self, iteration: int) -> None:
        """Do nothing: random networks are not trained."""

    def state(self) -> dict[str, Tensor]:
        """Nothing: the networks are functions of seed and iteration."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing, as there is no state."""
