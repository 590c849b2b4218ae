"""What the loop iterates, and what it gets of an iteration."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..config import ResolvedConfig
from ..loaders import RealImages
from ..methods import Objective


class IterationResult(NamedTuple):
    """Losses and checks of an iteration, on the device.

    Attributes:
        losses: ``(C, terms)``; None if the value was not requested.
        finite: bool ``(C,)``, whether the gradient of each class is finite.
        loader_seconds: time that the host waited for real images.
    """

    losses: Tensor | None
    finite: Tensor
    loader_seconds: float


class Iterated(Protocol):
    """The state of a run's classes and their step; a context that stops the loader at its end.

    Attributes:
        config: resolved settings.
        real: training images of all classes.
        device: where the classes are stepped.
        method: the objective.
        classes: those that are stepped.
        chunks: classes stepped together.
        images_per_step: real and synthetic images of an iteration.
    """

    config: ResolvedConfig
    real: RealImages
    device: torch.device
    classes: range
    chunks: list[range]
    images_per_step: int

    @property
    def method(self) -> Objective:
        """The objective."""
        ...

    @property
    def pretraining_seconds(self) -> float:
        """Seconds that training the networks took before this run, or before another one; or 0."""
        ...

    def step(self, iteration: int, *, value: bool = True) -> IterationResult:
        """Step every class once; ``iteration`` counts from 0, ``value`` asks for the losses."""
        ...

    def seconds_per_iteration(self) -> float:
        """Seconds of an iteration without loading, measured; no state changes."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs, besides the number of iterations done."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        ...

    def __enter__(self) -> object:
        """The loader starts with the first step."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stop the loader."""
        ...
