"""What a source of embedding networks is."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class NetworkSource(Protocol):
    """Owns the weights of the embedding networks and writes them to the embedder, in place.

    Attributes:
        pretraining_seconds: spent on training networks before the first iteration.
    """

    pretraining_seconds: float

    def load(self, iteration: int) -> None:
        """Make the network of ``iteration`` the embedder's, without waiting for the device.

        It changes nothing that :meth:`state` returns.
        """
        ...

    def update(self, iteration: int) -> None:
        """Train, after the step of ``iteration``, what later iterations embed with."""
        ...

    def seconds_per_update(self) -> float:
        """Seconds of :meth:`update`, measured; nothing changes."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Weights that the run has changed and a resumed one needs; the same on all ranks."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        ...


class ConstantSource:
    """Base of sources whose networks the run does not change: functions of seed and iteration."""

    pretraining_seconds = 0.0

    def update(self, iteration: int) -> None:
        """Do nothing."""

    def seconds_per_update(self) -> float:
        """Nothing."""
        return 0.0

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing, as there is no state."""
