"""What a condensation objective is: what it reads of a network, and what it minimises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..presets import Preset, Setting, shared_preset

Scope = Literal["class", "group", "set", "joint"]
At = Literal["conv", "norm", "relu", "block"]


class Views(NamedTuple):
    """Images of some classes, and how each class is augmented.

    Attributes:
        images: ``(k, n, channels, H, W)``, uint8 or float in [0, 1].
        draws: augmentation, ``(k, UNIFORMS)``, the same for real and synthetic images.
        labels: numbers of the classes in the data set, int64 ``(k,)``.
    """

    images: Tensor
    draws: Tensor
    labels: Tensor


class Reading(NamedTuple):
    """What a network says of ``n`` images of each of ``k`` classes.

    Images may go through the network in pieces: ``each`` is concatenated, ``mean`` averaged.

    Attributes:
        each: per image, ``(k, n, ...)``: features, logits.
        mean: averaged over a class's images, ``(k, ...)``: feature maps, Grams, gradients.
    """

    each: tuple[Tensor, ...] = ()
    mean: tuple[Tensor, ...] = ()

    def split(self, classes: int) -> "list[Reading]":
        """Readings of this many classes each."""
        parts = [[t.split(classes) for t in tensors] for tensors in self]
        count = len(next(chain(*parts)))
        return [Reading(*(tuple(p[i] for p in part) for part in parts)) for i in range(count)]


class Network(Protocol):
    """The embedding network of the iteration, over images ``(k, n, channels, H, W)``.

    Attributes:
        module: the network itself, over ``(B, channels, H, W)``, in the precision of the run.
        accuracy: share of its last training images that the network classified correctly, ``()``
            float32; 0 of one that the run has not trained.
        noise: numbers of N(0, 1), anew for every iteration, float32, of the shape that the method
            asks for (:meth:`Method.noise_shape`).
    """

    module: nn.Module
    accuracy: Tensor
    noise: Tensor

    @property
    def expert(self) -> "Network":
        """The network after all of its training; of methods with ``experts`` alone."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """Last features before the head, ``(k, n, D)`` float32."""
        ...

    def maps(self, images: Tensor, at: At) -> tuple[Tensor, ...]:
        """Feature maps of every block, first to last, ``(k, n, C, h, w)`` in the run's precision.

        Args:
            images: as above; :meth:`embed` of the same ones costs nothing more afterwards.
            at: where in the block: after its last convolution, norm or ReLU, or at its end.
        """
        ...

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``(..., classes)`` float32 of features ``(..., D)``."""
        ...


@dataclass(frozen=True)
class Objective:
    """What a condensation minimises. Its fields are its options (``--set NAME=VALUE``).

    Raise UserError from ``__post_init__`` for an option out of range.

    Attributes:
        terms: names of the loss's terms, in ``metrics.jsonl``.
        scope: "class" if the loss of a class depends on that class alone, given the network;
            "group" if it compares classes with each other: :meth:`Method.losses` sees a group of
            them at a time; "set" if the network depends on the whole synthetic set (one rank);
            "joint" if the loss needs all classes at once (one rank, one chunk).
        networks_from: the source of the embedding networks, unless set.
        float32_only: whether the network must run in float32 or tf32.
        experts: whether the probe also reads ``network.expert``, which only a pool has.
        max_synthetic: decoded images of a class in one step; of more, a random choice.
    """

    terms: ClassVar[tuple[str, ...]] = ("loss",)
    scope: ClassVar[Scope] = "class"
    networks_from: ClassVar[str] = "random"
    float32_only: ClassVar[bool] = False
    experts: ClassVar[bool] = False
    max_synthetic: ClassVar[int] = 200

    @property
    def grouped(self) -> bool:
        """Whether classes are stepped in whole groups."""
        return self.scope == "group"

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """Hyper-parameters for a data set and number of images; those of M3D unless overridden."""
        return shared_preset(setting)

    @classmethod
    def paper_preset(cls, setting: Setting) -> Preset:
        """Those exactly as published, where :meth:`preset` is better on held-out data."""
        return cls.preset(setting)

    @classmethod
    def options_for(cls, setting: Setting) -> Mapping[str, Any]:
        """Options whose default depends on the data set."""
        return {}


@dataclass(frozen=True)
class Method(Objective, ABC):
    """An objective that compares what a network says of real and of synthetic images."""

    def noise_shape(self, features: int) -> tuple[int, ...]:
        """Shape of ``network.noise``, for a network of this many last features."""
        return (0,)

    def probe(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """Read ``network``; compiled together with the augmentation.

        Args:
            network: of the iteration.
            images: augmented and normalised, ``(k, n, channels, H, W)``; of synthetic images the
                result must be differentiable in them. Draw no random numbers here.
            labels: int64 ``(k,)``.
        """
        return Reading(each=(network.embed(images),))

    def probe_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """:meth:`probe` of synthetic images, if more, or else, is read of them."""
        return self.probe(network, images, labels)

    @abstractmethod
    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Compare what the network says of real and of synthetic images.

        Args:
            real: without gradient.
            synthetic: differentiable in the synthetic images.
            value: whether to compute the losses; gradients may need less work.

        Returns:
            The terms, weighted, of every class, ``(k, len(terms))`` float32 without gradient (None
            without ``value``; their sum over the terms is the loss of a class), and a scalar whose
            gradient in the synthetic images is that of the sum of all losses.
        """


def distance_of_means(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of the mean features, ``(k,)``, of ``(k, n, D)`` and ``(k, m, D)``."""
    return (real.mean(1) - synthetic.mean(1)).square().sum(1)


def total(terms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What :meth:`Method.losses` returns, of differentiable terms ``(k,)``."""
    losses = torch.stack(terms, 1)
    return losses.detach(), losses.sum()
