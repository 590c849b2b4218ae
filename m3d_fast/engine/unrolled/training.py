"""The training of a network as a function of its images, and its gradient in them."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vjp

from ...augment import (
    CUTMIX_UNIFORMS,
    UNIFORMS,
    augment,
    cutmix,
    mixed_cross_entropy,
    parse_strategy,
)
from ...config import ResolvedConfig
from ...loaders import RealImages
from ...networks import build_network, initialise
from ...networks.arithmetic import CPU_PIECE, autocast, compile_per_shape, convolutions
from ...normalisation import Normalisation
from ..embedding import choose_piece_size
from ..sources.training import Recipe

FIRST_STEPS = 10  # about so many steps the average of the weights is a plain mean


class Batch(NamedTuple):
    """Synthetic images of one step, augmented and mixed.

    Attributes:
        images: ``(B, C, H, W)`` normalised.
        labels: of the images, int64 ``(B,)``.
        pasted: of the boxes of CutMix, int64 ``(B,)``.
        kept: share of each image that is kept, ``()``.
    """

    images: Tensor
    labels: Tensor
    pasted: Tensor
    kept: Tensor


class Trained(NamedTuple):
    """A network in training; its tensors are never written, a step makes new ones.

    Attributes:
        weights: ``(N,)`` float32, all parameters.
        momentum: of SGD, ``(N,)``.
        average: moving average of the weights, ``(N,)``.
        steps: taken so far.
    """

    weights: Tensor
    momentum: Tensor
    average: Tensor
    steps: int


class UnrolledTraining:
    """Steps of SGD with momentum on batches of synthetic images, and the gradient through them.

    Args:
        config: network, device, precision; whether to compile.
        real: shape, statistics and classes of the images.
        recipe: of the training.
        weight_average: share of the average that stays in a step.
    """

    def __init__(
        self, config: ResolvedConfig, real: RealImages, recipe: Recipe, weight_average: float
    ) -> None:
        self._device, self._precision, self._recipe = real.device, config.precision, recipe
        self._share = weight_average
        channels = real.image_shape[0]
        self._drawn = build_network(config.network, channels, config.size, real.num_classes)
        self._network = copy.deepcopy(self._drawn).to(self._device)
        named = list(self._network.named_parameters())
        self._names = [name for name, _ in named]
        self._shapes = [parameter.shape for _, parameter in named]
        self._sizes = [parameter.numel() for _, parameter in named]
        self._operations = parse_strategy(recipe.augment)
        self._normalise = Normalisation(real.mean, real.std, self._device)
        wrap = compile_per_shape if config.compile else lambda function, **_: function
        # fullgraph: falling back to eager raises instead of being silently slow
        self._gradient = wrap(grad(self._compute_loss), fullgraph=True)
        self._pull_back = wrap(self._differentiate_gradient, fullgraph=True)
        self._classify = wrap(grad(self._classify_real, has_aux=True), fullgraph=True)

    @property
    def parameters(self) -> int:
        """Numbers of a network."""
        return sum(self._sizes)

    def draw(self, stream: torch.Generator) -> Trained:
        """A network that has taken no step, drawn from ``stream`` on the CPU."""
        initialise(self._drawn, stream)
        parts = [parameter.detach().flatten() for parameter in self._drawn.parameters()]
        weights = torch.cat(parts).to(self._device)
        return Trained(weights, torch.zeros_like(weights), weights, 0)

    def prepare(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> Batch:
        """Normalise, augment and mix synthetic images; differentiable in them.

        Args:
            images: ``(B, C, H, W)`` in [0, 1].
            labels: int64 ``(B,)``.
            stream: draws augmentation and CutMix; on the device.
        """
        draws = torch.rand(len(images), UNIFORMS, generator=stream, device=self._device)
        box = torch.rand(CUTMIX_UNIFORMS, generator=stream, device=self._device)
        order = torch.randperm(len(images), generator=stream, device=self._device)
        shown = augment(self._normalise(images)[:, None], draws, self._operations)[:, 0]
        shown, pasted, kept = cutmix(shown, labels, self._recipe.cutmix, box, order)
        return Batch(shown, labels, pasted, kept)

    @torch.no_grad()
    def take(self, network: Trained, batch: Batch) -> Trained:
        """The network after a step on ``batch``."""
        batch = Batch(batch.images.detach().contiguous(), *batch[1:])
        recipe = self._recipe
        with convolutions(self._device, self._precision):
            gradient = self._gradient(network.weights, *batch)
        momentum = recipe.momentum * network.momentum + gradient
        momentum += recipe.weight_decay * network.weights
        weights = network.weights - recipe.lr * momentum
        average = torch.lerp(weights, network.average, self._stay(network.steps))
        return Trained(weights, momentum, average, network.steps + 1)

    @torch.no_grad()
    def differentiate(
        self, path: Sequence[Trained], batches: Sequence[Batch], gradient: Tensor
    ) -> list[Tensor]:
        """Gradients in the images of the batches, of a loss of the average of the weights.

        Args:
            path: the network before each step.
            batches: of the steps.
            gradient: of the loss, in the average of the weights after the last step, ``(N,)``.

        Returns:
            Per batch ``(B, C, H, W)``. The share of the average that the steps have is not
            multiplied: it is about the same in all windows, and scales the gradient alone.
        """
        recipe, share = self._recipe, 1.0
        weights, momentum = gradient, torch.zeros_like(gradient)
        result = []
        for network, batch in reversed(list(zip(path, batches, strict=True))):
            momentum = momentum - recipe.lr * weights
            images = batch.images.detach().contiguous()
            with convolutions(self._device, self._precision):
                through, pixels = self._pull_back(network.weights, images, *batch[1:], momentum)
            result.append(pixels)
            share *= self._stay(network.steps)
            weights = weights + recipe.weight_decay * momentum + through + share * gradient
            momentum = recipe.momentum * momentum
        return result[::-1]

    @torch.no_grad()
    def classify(self, weights: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Classify real images, which are not augmented.

        Args:
            weights: of the network, ``(N,)``.
            images: uint8 ``(n, C, H, W)``.
            labels: int64 ``(n,)``.

        Returns:
            Gradient of the mean cross-entropy in the weights, ``(N,)``, and the cross-entropy of
            each image, ``(n,)``.
        """
        normalised = self._normalise(images)
        on_cpu = self._device.type == "cpu"
        piece = choose_piece_size(len(images), CPU_PIECE) if on_cpu else len(images)
        gradient, losses = torch.zeros_like(weights), []
        parts = zip(normalised.split(piece), labels.split(piece), strict=True)
        with convolutions(self._device, self._precision):
            for part, own in parts:
                of_part, errors = self._classify(weights, part.contiguous(), own)
                gradient.add_(of_part, alpha=len(part) / len(images))
                losses.append(errors)
        return gradient, torch.cat(losses)

    def _stay(self, steps: int) -> float:
        """Share of the average that stays in the step after ``steps``."""
        return min(self._share, (steps + 1) / (steps + FIRST_STEPS))

    def _compute_logits(self, weights: Tensor, images: Tensor) -> Tensor:
        parts = zip(self._names, weights.split(self._sizes), self._shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts}
        with autocast(self._device, self._precision):
            return functional_call(self._network, parameters, (images,)).float()

    def _compute_loss(
        self, weights: Tensor, images: Tensor, labels: Tensor, pasted: Tensor, kept: Tensor
    ) -> Tensor:
        return mixed_cross_entropy(self._compute_logits(weights, images), labels, pasted, kept)

    def _differentiate_gradient(
        self,
        weights: Tensor,
        images: Tensor,
        labels: Tensor,
        pasted: Tensor,
        kept: Tensor,
        vector: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradients in weights and images of the product of the loss's gradient with ``vector``."""

        def of_loss(weights: Tensor, images: Tensor) -> Tensor:
            return grad(self._compute_loss)(weights, images, labels, pasted, kept)

        pull_back = vjp(of_loss, weights, images)[1]
        of_weights, of_images = pull_back(vector)
        return of_weights, of_images

    def _classify_real(
        self, weights: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        errors = F.cross_entropy(self._compute_logits(weights, images), labels, reduction="none")
        return errors.mean(), errors.detach()
