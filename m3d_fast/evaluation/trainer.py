"""The inner loop of an evaluation: train a network on a small set and test it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment import (
    augment,
    augment_imagenet,
    augment_resized_crop,
    cutmix,
    mixed_cross_entropy,
    parse_strategy,
)
from ..common.hardware import free_bytes
from ..loaders import RealImages
from ..networks import initialise
from ..networks.arithmetic import CPU_PIECE, autocast, compile_per_shape, convolutions
from ..normalisation import Normalisation
from ..synthetic import StoredImages
from .losses import divergence, mix_labels, soften
from .protocols import IMAGENET, RESIZED_CROP, Protocol
from .streamed_set import StreamedSet
from .training_step import TrainingImages, TrainingStep

TEST_PIECE = 512  # test images per forward on a GPU

# of the free memory, the share that a decoded training set may take; a larger one is decoded batch
# by batch, which costs factor^2 interpolations per image and gives the same bits
DECODED_SHARE = 1 / 4


class Trainer:
    """Trains one network repeatedly, each time from a new initialisation.

    Args:
        network: returns logits; :meth:`train` initialises it in place.
        protocol: optimiser, schedule and augmentation.
        mean, std: per channel, pixels in [0, 1].
        device: where to train.
        precision: "bf16", "tf32" or "fp32".
        compile: whether to torch.compile training and testing.
        teacher: of a protocol with soft labels, unless they are stored: on the device, frozen, in
            evaluation mode.
    """

    def __init__(
        self,
        network: nn.Module,
        protocol: Protocol,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        precision: str,
        compile: bool,
        teacher: nn.Module | None = None,
    ) -> None:
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.network = network.to(device)
        self.network.to(memory_format=layout)
        self.protocol, self.device, self.precision = protocol, device, precision
        self._normalise = Normalisation(mean, std, device)
        self._layout = layout
        self._teacher = teacher
        other = protocol.augment in (IMAGENET, RESIZED_CROP)
        self._operations = () if other else parse_strategy(protocol.augment)
        self._embed = cast(Callable[[Tensor], Tensor], network.embed)
        self.compiled = compile
        self._logits: Callable[..., Tensor] = self._compute_logits
        self._loss: Callable[..., Tensor] = self._compute_loss
        if compile:
            self._logits = compile_per_shape(self._compute_logits)
            self._loss = compile_per_shape(self._compute_loss, training_on=device.type)
        # its own, so that several trainers share a GPU
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def train(
        self,
        images: TrainingImages,
        labels: Tensor,
        *,
        epochs: int | None = None,
        initial: torch.Generator,
        stream: torch.Generator,
    ) -> Iterator[Tensor]:
        """Train the network from a new initialisation, one epoch per item requested.

        Args:
            images: ``(n, C, H, W)`` float in [0, 1] on the device, or stored or streamed ones.
            labels: on the device: ``(n,)`` int64, of a streamed set its own; or stored soft ones,
                probabilities ``(n, classes)`` float32 at the protocol's temperature.
            epochs: passes over the images; those of the protocol unless given.
            initial: draws the parameters.
            stream: draws order, augmentation and CutMix.

        Yields:
            The last loss of every epoch, a tensor that later steps overwrite. On a GPU it is ready
            after the last epoch, or once the device is synchronised.
        """
        protocol, count = self.protocol, len(images)
        epochs = protocol.epochs if epochs is None else epochs
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with self._on_stream():
            initialise(self.network, initial)
            self.network.train()
            stored = self._prepare(images)
            step = TrainingStep(self.network, self._loss, stored, labels, protocol, self.device)
        for epoch in range(epochs):
            with self._on_stream(), convolutions(self.device, self.precision):
                step.set_learning_rate(protocol.find_rate(epoch, epochs))
                order = torch.randperm(count, generator=stream, device=self.device)
                batches = order.split(protocol.batch_size)
                read = images.read if isinstance(images, StreamedSet) else iter
                for rows in read(batches):
                    step.take(rows, stream)
            if epoch == epochs - 1:
                self._wait_for_stream()
            yield step.loss

    def _on_stream(self) -> AbstractContextManager[object]:
        """Queue what follows on this trainer's stream; on a CPU nothing."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _wait_for_stream(self) -> None:
        """Let what the caller queues from now on wait for this trainer's stream."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _prepare(self, images: TrainingImages) -> TrainingImages:
        """Decode once what fits into memory."""
        if isinstance(images, StoredImages):
            if images.decoded_bytes > free_bytes(self.device) * DECODED_SHARE:
                return images
            images = images.decode()
        return images

    def _compute_loss(
        self,
        images: Tensor,
        labels: Tensor,
        uniforms: Tensor,
        normals: Tensor,
        box: Tensor,
        order: Tensor,
    ) -> Tensor:
        images = self._augment(images, uniforms, normals)
        images, pasted, kept = cutmix(images, labels, self.protocol.cutmix, box, order)
        logits = self._compute_logits(images)
        if self.protocol.loss == "cross-entropy":
            return mixed_cross_entropy(logits, labels, pasted, kept)
        if self._teacher is None:
            target = mix_labels(labels, pasted, kept)
            return divergence(logits, target, self.protocol.temperature)
        with torch.no_grad():
            taught = self._compute_logits(images, self._teacher)
        if self.protocol.loss == "mse":
            return F.mse_loss(logits, taught)
        temperature = self.protocol.temperature
        return divergence(logits, soften(taught, temperature), temperature)

    def _augment(self, images: Tensor, uniforms: Tensor, normals: Tensor) -> Tensor:
        """Normalised images of a batch, augmented."""
        if self.protocol.augment == IMAGENET:
            return self._normalise(augment_imagenet(images, uniforms, normals))
        if self.protocol.augment == RESIZED_CROP:
            return self._normalise(augment_resized_crop(images, uniforms))
        return augment(self._normalise(images)[:, None], uniforms, self._operations)[:, 0]

    def _compute_logits(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """Logits of normalised images, of another network if one is given."""
        network = network or self.network
        with autocast(self.device, self.precision):
            return network(images.contiguous(memory_format=self._layout)).float()

    def embed(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of uint8 images ``(B, C, H, W)``, in evaluation mode."""
        self.network.eval()
        device, precision = self.device, self.precision
        with torch.no_grad(), autocast(device, precision), convolutions(device, precision):
            features = self._embed(self._normalise(images))
        return features.float()

    @torch.no_grad()
    def measure_accuracy(self, test: RealImages) -> float:
        """Share of the test images that are classified correctly, a fraction of 1."""
        self.network.eval()
        piece = CPU_PIECE if self.device.type == "cpu" else TEST_PIECE
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        with convolutions(self.device, self.precision):
            for images, labels in test.ordered(piece):
                # a compiled network is compiled once per shape: the last piece is padded
                padded = F.pad(images, (0, 0) * 3 + (0, piece - len(images)))
                correct += (self._predict(padded)[: len(labels)] == labels).sum()
        return int(correct) / sum(test.class_sizes)

    def _predict(self, images: Tensor) -> Tensor:
        return self._logits(self._normalise(images)).argmax(1)
