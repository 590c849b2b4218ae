"""Terms that any method can add to its loss (``--add NAME:WEIGHT``)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .protocol import Method, Network, Reading, Scope


class Term(ABC):
    """A loss of its own. Of real and of synthetic images it reads one tensor.

    Attributes:
        name: of its column in ``metrics.jsonl``.
        scope: as a method's; "group" if it looks at several classes.
        float32_only, experts: as a method's.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope] = "class"
    float32_only: ClassVar[bool] = False
    experts: ClassVar[bool] = False

    def read_real(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """What :meth:`loss` compares with, ``(k, n, ...)``; nothing unless overridden."""
        return images.new_empty(*images.shape[:2], 0)

    @abstractmethod
    def read_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """What the loss is made of, ``(k, n, ...)``, differentiable in the images.

        The method's probe has run: features of the same images cost nothing.
        """

    @abstractmethod
    def loss(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Loss of every class, ``(k,)``, of what was read."""


@dataclass(frozen=True)
class Combined(Method):
    """A method and terms added to its loss; with a term that reads experts, under pooled networks.

    Attributes:
        base: the method.
        added: terms and their weights.
    """

    base: Method
    added: tuple[tuple[Term, float], ...]

    def __post_init__(self) -> None:
        scopes: list[Scope] = ["class", "group", "set", "joint"]
        parts: list[Method | Term] = [self.base, *(term for term, _ in self.added)]
        experts = any(part.experts for part in parts)
        of_the_parts = {
            "terms": (*self.base.terms, *(term.name for term, _ in self.added)),
            "scope": max((part.scope for part in parts), key=scopes.index),
            "networks_from": "pool" if experts else self.base.networks_from,
            "float32_only": any(part.float32_only for part in parts),
            "experts": experts,
            "max_synthetic": self.base.max_synthetic,
        }
        for name, value in of_the_parts.items():
            object.__setattr__(self, name, value)

    @property
    def grouped(self) -> bool:
        """Whether the method or a term compares classes."""
        return self.base.grouped or any(term.scope == "group" for term, _ in self.added)

    def noise_shape(self, features: int) -> tuple[int, ...]:
        """The method's."""
        return self.base.noise_shape(features)

    def probe(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """What the method reads, then one tensor per term."""
        each, mean = self.base.probe(network, images, labels)
        read = (term.read_real(network, images, labels) for term, _ in self.added)
        return Reading((*each, *read), mean)

    def probe_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """What the method reads, then one tensor per term."""
        each, mean = self.base.probe_synthetic(network, images, labels)
        read = (term.read_synthetic(network, images, labels) for term, _ in self.added)
        return Reading((*each, *read), mean)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The method's terms, then those added."""
        count = len(self.added)
        base = [Reading(reading.each[:-count], reading.mean) for reading in (real, synthetic)]
        columns, objective = self.base.losses(base[0], base[1], value)
        read = zip(self.added, real.each[-count:], synthetic.each[-count:], strict=True)
        added = torch.stack([weight * term.loss(x, y) for (term, weight), x, y in read], 1)
        if columns is not None:
            columns = torch.cat([columns, added.detach()], 1)
        return columns, objective + added.sum()
