"""The training of an embedding network: steps of SGD on fixed buffers, without the host."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...augment import (
    CUTMIX_UNIFORMS,
    UNIFORMS,
    augment,
    cutmix,
    mixed_cross_entropy,
    parse_strategy,
)
from ...common.cuda_graph import CudaGraphRunner
from ...config import ResolvedConfig
from ...loaders import RealImages
from ...networks import build_network, initialise
from ...networks.arithmetic import autocast, compile_per_shape, convolutions
from ...normalisation import Normalisation
from ..embedding import convert_to_channels_last

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD and cross-entropy, one draw of DSA per image.

    Attributes:
        batch: images per step.
        augment: DSA strategy, :func:`leave_out_cutout` where there is CutMix.
        cutmix: probability of mixing a batch.
        lr, momentum, weight_decay: of SGD.
    """

    batch: int
    augment: str
    cutmix: float = 0.0
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4


def leave_out_cutout(strategy: str) -> str:
    """A DSA strategy without cutout, which CutMix takes the place of (IDC, arXiv 2205.14959)."""
    return "_".join(name for name in strategy.split("_") if name != "cutout") or "none"


class NetworkTraining:
    """A network that is trained at fixed addresses; on a GPU its step is one CUDA graph.

    Every rank that trains the same images ends with the same weights: cuDNN is deterministic here.

    Args:
        config: network, device, precision and the use of CUDA graphs.
        real: statistics and classes of the images.
        recipe: of the training.
        compile: whether to compile augmentation, network and loss as one function.
        dtype: of the images: uint8, or float32 in [0, 1].

    Attributes:
        network: float32; its weights may be written at any time.
        momentum: of the parameters, updated in place.
        accuracy: share of the images that were classified correctly since :meth:`begin`, ``()``.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        real: RealImages,
        recipe: Recipe,
        *,
        compile: bool,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        self._device, self._precision, self._recipe = real.device, config.precision, recipe
        channels = real.image_shape[0]
        self._drawn = build_network(config.network, channels, config.size, real.num_classes)
        self._drawn.requires_grad_(False).to(self._device)
        self.network = copy.deepcopy(self._drawn)
        if compile or self._device.type == "cuda":
            convert_to_channels_last(self.network)
        self.network.requires_grad_(True)
        self._parameters: list[Tensor] = list(self.network.parameters())
        self.momentum = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._operations = parse_strategy(recipe.augment)
        self._normalise = Normalisation(real.mean, real.std, self._device)
        self._allocate(real, dtype)
        self._loss = self._compute_loss
        if compile:
            self._loss = compile_per_shape(self._compute_loss, training_on=self._device.type)
        self._run: Callable[[], None] = self._step
        if config.cuda_graphs:
            updated = [*self._parameters, *self.momentum, self.accuracy]
            self._run = CudaGraphRunner(self._step, updated, self._device)
            self._run()  # captured on black images now: its memory counts as taken from here on

    def _allocate(self, real: RealImages, dtype: torch.dtype) -> None:
        batch, device = self._recipe.batch, self._device
        self._images = torch.zeros(batch, *real.image_shape, dtype=dtype, device=device)
        self._labels = torch.zeros(batch, dtype=torch.int64, device=device)
        self._draws = torch.zeros(batch, UNIFORMS, device=device)
        self._box = torch.zeros(CUTMIX_UNIFORMS, device=device)
        self._order = torch.arange(batch, device=device)
        # on the device: a graph keeps the numbers of the host as they were when it was captured
        self._rate = torch.tensor(self._recipe.lr, device=device)
        self._share = torch.ones((), device=device)  # of the next step's accuracy in the mean
        self.accuracy = torch.zeros((), device=device)
        self._steps = 0

    def initialise(self, stream: torch.Generator) -> None:
        """Draw the weights of a new network from ``stream``, as embedding networks are drawn.

        The layout of the network in memory makes no difference: it is drawn in that of the CPU.
        """
        initialise(self._drawn, stream)
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, list(self._drawn.parameters()))
        self.begin()

    def begin(self, *, momentum: bool = False) -> None:
        """Begin to count the accuracy anew.

        Args:
            momentum: whether to keep the momentum of the steps before.
        """
        if not momentum:
            torch._foreach_zero_(self.momentum)
        self.accuracy.zero_()
        self._steps = 0

    def take(
        self, images: Tensor, labels: Tensor, stream: torch.Generator, rate: float = 1.0
    ) -> None:
        """Train on one batch.

        Args:
            images: ``(batch, C, H, W)``, pixels.
            labels: int64 ``(batch,)``.
            stream: draws augmentation and CutMix; on the device.
            rate: learning rate, a multiple of the recipe's.
        """
        self._images.copy_(images, non_blocking=True)
        self._labels.copy_(labels, non_blocking=True)
        torch.rand(self._draws.shape, generator=stream, out=self._draws)
        torch.rand(self._box.shape, generator=stream, out=self._box)
        torch.randperm(len(self._order), generator=stream, out=self._order)
        self._rate.fill_(rate * self._recipe.lr)
        self._steps += 1
        self._share.fill_(1 / self._steps)
        self._run()

    @torch.no_grad()
    def measure_accuracy(self, images: Tensor, labels: Tensor) -> Tensor:
        """Share of images that the network classifies correctly, ``()`` float32.

        Args:
            images: uint8 ``(n, C, H, W)``, which are not augmented.
            labels: int64 ``(n,)``.
        """
        normalised = self._normalise(images)
        precision = self._precision
        with (
            convolutions(self._device, precision, deterministic=True),
            autocast(self._device, precision),
        ):
            logits = self.network(normalised)
        correct = logits.argmax(1) == labels.to(self._device, non_blocking=True)
        return correct.float().mean()

    def seconds_per_step(self) -> float:
        """Seconds of a step, measured on the last batch; weights and momentum do not change."""
        updated = [*self._parameters, *self.momentum, self.accuracy]
        before = [tensor.clone() for tensor in updated]
        self._run()  # now compiled
        self.accuracy.cpu()
        start = time.perf_counter()
        self._run()
        self.accuracy.cpu()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            torch._foreach_copy_(updated, before)
        return seconds

    def _step(self) -> None:
        with convolutions(self._device, self._precision, deterministic=True):
            loss, accuracy = self._loss(
                self._images, self._labels, self._draws, self._box, self._order
            )
            gradients = list(torch.autograd.grad(loss, self._parameters))
        recipe = self._recipe
        with torch.no_grad():
            torch._foreach_add_(gradients, self._parameters, alpha=recipe.weight_decay)
            torch._foreach_mul_(self.momentum, recipe.momentum)
            torch._foreach_add_(self.momentum, gradients)
            steps = torch._foreach_mul(self.momentum, -self._rate)
            torch._foreach_add_(self._parameters, steps)
            self.accuracy.lerp_(accuracy, self._share)

    def _compute_loss(
        self, images: Tensor, labels: Tensor, draws: Tensor, box: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a batch, both ``()`` float32."""
        images = self._normalise(images)[:, None]
        images = augment(images, draws, self._operations)[:, 0]
        images, pasted, kept = cutmix(images, labels, self._recipe.cutmix, box, order)
        with autocast(self._device, self._precision):
            logits = self.network(images).float()
        loss = mixed_cross_entropy(logits, labels, pasted, kept)
        return loss, (logits.detach().argmax(1) == labels).float().mean()


class LabelledRows:
    """Real images of all classes by row, and their labels.

    Args:
        real: the images.

    Attributes:
        count: images in all.
    """

    def __init__(self, real: RealImages) -> None:
        self._real, self._ends = real, np.cumsum(real.class_sizes)
        self.count = int(self._ends[-1])

    def draw(self, batches: int, batch: int, seed: int) -> list[IntArray]:
        """Rows of random batches, each ``(batch,)`` without replacement, of at most ``count``."""
        rng = np.random.default_rng(seed)
        return [rng.choice(self.count, batch, replace=False) for _ in range(batches)]

    def draw_each(self, count: int, seed: int) -> list[IntArray]:
        """Random rows of every class, ``(count,)`` without replacement; all of a smaller class."""
        rng = np.random.default_rng(seed)
        return [
            end - size + rng.choice(size, min(count, size), replace=False)
            for size, end in zip(self._real.class_sizes, self._ends, strict=True)
        ]

    def read(
        self, iterate_rows: Callable[[], Iterator[IntArray]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 ``(batch, C, H, W)`` and labels of each array of rows in turn."""
        with self._real.read_rows(iterate_rows) as batches:
            for images, rows in zip(batches, iterate_rows(), strict=True):
                yield images, self._find_labels(rows)

    def _find_labels(self, rows: IntArray) -> Tensor:
        labels = torch.from_numpy(np.searchsorted(self._ends, rows, side="right"))
        return labels.pin_memory() if self._real.device.type == "cuda" else labels
