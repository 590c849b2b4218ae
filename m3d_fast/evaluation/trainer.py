"""The inner loop of an evaluation: train a network on a small set and test it."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment import (
    CUTMIX_UNIFORMS,
    IMAGENET_NORMALS,
    IMAGENET_UNIFORMS,
    augment,
    augment_imagenet,
    cutmix,
    draw,
    parse_strategy,
)
from ..loaders import RealImages
from ..networks import initialise
from ..networks.arithmetic import CPU_PIECE, autocast, compile_per_shape, convolutions
from ..presets import Protocol
from ..synthetic import StoredImages

TEST_PIECE = 512  # test images per forward on a GPU


class Trainer:
    """Trains one network repeatedly, each time from a new initialisation.

    Args:
        network: returns logits; :meth:`fit` initialises it in place.
        protocol: optimiser, schedule and augmentation.
        mean, std: per channel, pixels in [0, 1].
        device: where to train.
        precision: "bf16" or "fp32".
        compile: whether to torch.compile the network.
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
    ) -> None:
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.network = network.to(device)
        self.network.to(memory_format=layout)
        self.protocol, self.device, self.precision = protocol, device, precision
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(std, device=device).view(-1, 1, 1)
        self._layout = layout
        self._imagenet = protocol.augment == "imagenet"
        self._operations = () if self._imagenet else parse_strategy(protocol.augment)
        self._embed = cast(Callable[[Tensor], Tensor], network.embed)
        self._forward: Callable[[Tensor], Tensor] = (
            compile_per_shape(network) if compile else network
        )

    def fit(
        self,
        images: Tensor | StoredImages,
        labels: Tensor,
        *,
        initial: torch.Generator,
        stream: torch.Generator,
        on_epoch: Callable[[int, Tensor], None],
    ) -> None:
        """Train the network from a new initialisation.

        Args:
            images: ``(n, C, H, W)`` float in [0, 1] on the device, or stored ones.
            labels: ``(n,)`` int64 on the device.
            initial: draws the parameters.
            stream: draws order, augmentation and CutMix.
            on_epoch: called with the number of epochs done and the last loss, a tensor.
        """
        protocol = self.protocol
        initialise(self.network, initial)
        self.network.train()
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            protocol.lr,
            protocol.momentum,
            weight_decay=protocol.weight_decay,
        )
        milestones = [int(fraction * protocol.epochs) for fraction in protocol.milestones]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, protocol.gamma)
        with convolutions(self.device, self.precision):
            for epoch in range(protocol.epochs):
                order = torch.randperm(len(images), generator=stream, device=self.device)
                for batch in order.split(protocol.batch_size):
                    loss = self._loss(images[batch], labels[batch], stream)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()
                on_epoch(epoch + 1, loss.detach())

    def _loss(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        if self._imagenet:
            uniforms = self._draw(torch.rand, stream, len(images), IMAGENET_UNIFORMS)
            normals = self._draw(torch.randn, stream, len(images), IMAGENET_NORMALS)
            images = self._normalise(augment_imagenet(images, uniforms, normals))
        else:
            draws = draw(len(images), stream)
            images = augment(self._normalise(images)[:, None], draws, self._operations)[:, 0]
        box = self._draw(torch.rand, stream, CUTMIX_UNIFORMS)
        order = self._draw(torch.randperm, stream, len(images))
        images, pasted, kept = cutmix(images, labels, self.protocol.cutmix, box, order)
        logits = self._compute_logits(images)
        loss = kept * F.cross_entropy(logits, labels)
        return loss + (1 - kept) * F.cross_entropy(logits, pasted)

    def _draw(self, draw: Callable[..., Tensor], stream: torch.Generator, *shape: int) -> Tensor:
        return draw(*shape, generator=stream, device=self.device)

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std

    def _compute_logits(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return self._forward(images.contiguous(memory_format=self._layout)).float()

    def embed(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of uint8 images ``(B, C, H, W)``, in evaluation mode."""
        self.network.eval()
        device, precision = self.device, self.precision
        with torch.no_grad(), autocast(device, precision), convolutions(device, precision):
            features = self._embed(self._normalise(images.float() / 255))
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
        return self._compute_logits(self._normalise(images.float() / 255)).argmax(1)
