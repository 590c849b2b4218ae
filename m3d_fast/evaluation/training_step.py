"""One training step of an evaluation network: fixed buffers, no wait for the device."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..augment import (
    CROP_UNIFORMS,
    CUTMIX_UNIFORMS,
    IMAGENET_NORMALS,
    IMAGENET_UNIFORMS,
    UNIFORMS,
)
from ..common.cuda_graph import CudaGraphRunner
from ..synthetic import StoredImages
from .optimizers import build_optimizer
from .protocols import IMAGENET, RESIZED_CROP, Protocol
from .streamed_set import StreamedSet

TrainingImages = Tensor | StoredImages | StreamedSet

# uniform and normal numbers of an image, of augmentations that are no strategies of DSA
NUMBERS = {IMAGENET: (IMAGENET_UNIFORMS, IMAGENET_NORMALS), RESIZED_CROP: (CROP_UNIFORMS, 0)}


class Draws(NamedTuple):
    """The random numbers of one batch of ``B`` images.

    Attributes:
        uniforms: of the augmentation, ``(B, UNIFORMS)``, or as ``NUMBERS`` says.
        normals: of ImageNet's lighting noise, ``(B, IMAGENET_NORMALS)``; ``(B, 0)`` otherwise.
        box: uniform numbers of CutMix, ``(CUTMIX_UNIFORMS,)``.
        order: the images whose boxes CutMix pastes, int64 ``(B,)``.
    """

    uniforms: Tensor
    normals: Tensor
    box: Tensor
    order: Tensor

    @classmethod
    def allocate(cls, count: int, device: torch.device, augmentation: str) -> "Draws":
        """Buffers for batches of up to ``count`` images, and the augmentation of a protocol."""
        uniforms, normals = NUMBERS.get(augmentation, (UNIFORMS, 0))
        return cls(
            torch.empty(count, uniforms, device=device),
            torch.empty(count, normals, device=device),
            torch.empty(CUTMIX_UNIFORMS, device=device),
            torch.empty(count, dtype=torch.int64, device=device),
        )

    def of_batch(self, count: int) -> "Draws":
        """Views of the first ``count`` images."""
        return Draws(self.uniforms[:count], self.normals[:count], self.box, self.order[:count])

    def draw(self, stream: torch.Generator) -> None:
        """Fill the buffers from ``stream``; this order is part of a seed's meaning."""
        torch.rand(self.uniforms.shape, generator=stream, out=self.uniforms)
        if self.normals.shape[1]:
            torch.randn(self.normals.shape, generator=stream, out=self.normals)
        torch.rand(self.box.shape, generator=stream, out=self.box)
        torch.randperm(len(self.order), generator=stream, out=self.order)


class TrainingStep:
    """Steps of the protocol's optimiser on batches of one training set, at fixed addresses.

    On a GPU a step is captured as a CUDA graph, once for full batches and once for the last one
    of an epoch where it is smaller: padding it would change the statistics of a batch norm.
    The numbers are drawn before, outside the graph.

    Args:
        network: whose parameters are trained.
        loss: of images ``(B, C, H, W)``, labels ``(B,)`` and the fields of :class:`Draws`.
        images: ``(n, C, H, W)``, or something that is indexed like it.
        labels: ``(n,)`` int64, or soft ones ``(n, classes)`` float32.
        protocol: batch size, augmentation and optimiser.
        device: where all of them are.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[..., Tensor],
        images: TrainingImages,
        labels: Tensor,
        protocol: Protocol,
        device: torch.device,
    ) -> None:
        self._loss, self._images, self._labels = loss, images, labels
        self._parameters = list(network.parameters())
        self._optimizer = build_optimizer(network, protocol)
        count = min(protocol.batch_size, len(labels))
        self._draws = Draws.allocate(count, device, protocol.augment)
        self._rows = torch.empty(count, dtype=torch.int64, device=device)
        # on the device: a graph keeps the numbers of the host as they were when it was captured
        self._lr = torch.tensor(protocol.lr, device=device)
        self.loss = torch.zeros((), device=device)
        self._device = device
        self._updated = [*self._parameters, *self._optimizer.state, *network.buffers()]
        self._graphs: dict[int, CudaGraphRunner] = {}  # by images

    def set_learning_rate(self, rate: float) -> None:
        """Take ``rate`` from the next step on."""
        self._lr.fill_(rate)

    def take(self, rows: Tensor, stream: torch.Generator) -> None:
        """Train on the images ``rows``, at most a batch; ``loss`` holds its loss afterwards.

        Args:
            rows: int64 ``(B,)`` on the device.
            stream: draws augmentation and CutMix.
        """
        count = len(rows)
        self._rows[:count].copy_(rows)
        self._draws.of_batch(count).draw(stream)
        if self._device.type != "cuda":
            self._step(count)
            return
        if count not in self._graphs:
            self._graphs[count] = CudaGraphRunner(
                partial(self._step, count), self._updated, self._device
            )
        self._graphs[count]()

    def _step(self, count: int) -> None:
        rows, draws = self._rows[:count], self._draws.of_batch(count)
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._loss(self._images[rows], self._labels[rows], *draws)
        # not autograd.grad: this gives gradients the layout of their parameters, as steps expect
        loss.backward()
        self.loss.copy_(loss.detach())
        with torch.no_grad():
            self._optimizer.step(self._lr)
