"""The state of a condensation through unrolled training, and its iteration."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from ...basis import rates_of_numbers
from ...common.seeds import derive_seed, generator
from ...config import ResolvedConfig
from ...initial import initial_pixels
from ...loaders import RealImages
from ...methods.bptt import BPTT
from ...presets import cutmix_probability
from ...run.checkpoint import NETWORKS, SAMPLER, check_shapes, select_by_prefix
from ...synthetic import StoredImages
from ..iteration import IterationResult
from ..pixel_store import PixelState
from ..sources.training import Recipe, leave_out_cutout
from .training import Batch, Trained, UnrolledTraining

CLIP = 2.0  # root mean squares of the gradients before, the longest that one may be
CLIP_DECAY = 0.98  # of their mean square
NOT_DRAWN = -1  # steps of a network that has not been chosen yet


class UnrolledCondenser:
    """Steps all classes by gradients through windows of the training of networks on them.

    It keeps ``pool`` networks at different places of their training. An iteration takes one of
    them at random, trains it for a window, classifies real images with it, and steps the images by
    the gradient of that loss; the network then goes on, or is replaced at the end of its training.
    So that the places are spread over the horizon from the start, a network that is chosen for the
    first time is trained to its own before.

    Args:
        config: resolved settings of a run of :class:`m3d_fast.methods.bptt.BPTT`.
        real: training images of all classes.
    """

    pretraining_seconds = 0.0

    def __init__(self, config: ResolvedConfig, real: RealImages) -> None:
        self.config, self.real, self.device = config, real, real.device
        method = config.build_method()
        assert isinstance(method, BPTT), "the loop chooses by the method"
        self.method, self.classes = method, range(real.num_classes)
        self.chunks = [self.classes]
        self._basis = config.build_basis(real.num_classes, real.image_shape)
        self._rates = rates_of_numbers(self._basis, self.device)
        self._state = PixelState.start(initial_pixels(real, config), config)
        self._decoded = config.decoded_per_class
        self._batch = min(method.batch, len(self.classes) * self._decoded)
        recipe = Recipe(
            self._batch,
            leave_out_cutout(config.augment),
            cutmix_probability(config.size),
            lr=method.rate,
        )
        self._training = UnrolledTraining(config, real, recipe, method.weight_average)
        empty = torch.zeros(self._training.parameters, device=self.device)
        self._networks = [Trained(empty, empty, empty, NOT_DRAWN)] * config.pool
        self._square = torch.zeros((), device=self.device)  # mean of the gradients' squared norms
        self._batches: Iterator[Tensor] | None = None
        self._loading = ExitStack()
        trained = self._batch * (method.window + method.between)
        self.images_per_step = len(self.classes) * config.real_batch + trained

    @property
    def pixels(self) -> Tensor:
        """What is stored of the classes, ``(C, ipc, channels, H, W)`` in [0, 1]."""
        return self._state.pixels

    def step(self, iteration: int, *, value: bool = True) -> IterationResult:
        """Step all classes once; the losses cost nothing.

        Args:
            iteration: counts from 0; with the seed it determines network, draws and augmentation.
            value: ignored.
        """
        chosen = derive_seed(self.config.seed, "unrolled", iteration, 0) % len(self._networks)
        start = time.perf_counter()
        real = self._next_real()
        waited = time.perf_counter() - start
        network, gradient, losses = self._unroll(self._take_to_its_place(chosen), real, iteration)
        finite = gradient.isfinite().flatten(1).all(1)
        config = self.config
        share = self._rates * config.share_of_rate(iteration)
        rates = config.lr_img, config.momentum, config.average
        self._state.step_(self._clip(gradient), *rates, share=share)
        if network.steps + self.method.window > self.method.horizon:
            network = self._draw(config.pool + iteration)
        else:
            network = self._train(network, self.method.between, iteration, 2)
        self._networks[chosen] = network
        return IterationResult(losses[:, None], finite, waited)

    def seconds_per_iteration(self) -> float:
        """Seconds of an iteration without loading, measured; no state changes."""
        network = self._draw(0)
        shape = len(self.classes), self.config.real_batch, *self.real.image_shape
        black = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        start = 0.0
        for compiled in (False, True):
            if compiled:
                start = time.perf_counter()
            after, gradient, _ = self._unroll(network, black, 0)
            self._train(after, self.method.between, 0, 2)
            gradient.cpu()
        return time.perf_counter() - start

    def close(self) -> None:
        """Stop the loader; the next step starts it again."""
        self._loading.close()
        self._batches = None

    def __enter__(self) -> "UnrolledCondenser":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs, besides the number of iterations done."""
        positions = self.real.state_dict().items()
        samplers = {f"{SAMPLER}{name}": torch.from_numpy(v) for name, v in positions}
        networks = {
            "weights": torch.stack([network.weights for network in self._networks]),
            "momentum": torch.stack([network.momentum for network in self._networks]),
            "average": torch.stack([network.average for network in self._networks]),
            "steps": torch.tensor([network.steps for network in self._networks]),
            "square": self._square,
        }
        named = {f"{NETWORKS}{name}": tensor for name, tensor in networks.items()}
        return self._state.tensors() | samplers | named

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            UserError: if the tensors are those of another run.
        """
        self.close()
        check_shapes(tensors, self.state())
        for name, tensor in self._state.tensors().items():
            tensor.copy_(tensors[name])
        positions = select_by_prefix(tensors, SAMPLER).items()
        self.real.load_state_dict({name: tensor.numpy() for name, tensor in positions})
        networks = select_by_prefix(tensors, NETWORKS)
        names = ("weights", "momentum", "average")
        parts = (networks[name].to(self.device) for name in names)
        self._networks = list(map(Trained, *parts, networks["steps"].tolist()))
        self._square.copy_(networks["square"])

    def _take_to_its_place(self, number: int) -> Trained:
        network = self._networks[number]
        if network.steps != NOT_DRAWN:
            return network
        steps = self.method.horizon * number // len(self._networks)
        return self._train(self._draw(number), steps, number, 3)

    def _draw(self, number: int) -> Trained:
        return self._training.draw(generator(self.config.seed, "network", number))

    def _unroll(
        self, network: Trained, real: Tensor, iteration: int
    ) -> tuple[Trained, Tensor, Tensor]:
        """A window of a network's training.

        Returns:
            The network after it, the gradient of the loss in the pixels, and the loss of every
            class, ``(C,)``.
        """
        stream = generator(self.config.seed, "unrolled", iteration, 1, device=self.device)
        leaf = self._state.pixels.detach().requires_grad_()
        images, path, batches = self._decode(leaf), [], []
        for _ in range(self.method.window):
            path.append(network)
            batches.append(self._draw_batch(images, stream))
            network = self._training.take(network, batches[-1])
        labels = torch.arange(len(self.classes), device=self.device)
        labels = labels.repeat_interleave(real.shape[1])
        images = real.flatten(0, 1)
        of_weights, losses = self._training.classify(network.average, images, labels)
        of_images = self._training.differentiate(path, batches, of_weights)
        shown = [batch.images for batch in batches]
        (gradient,) = torch.autograd.grad(shown, leaf, of_images)
        return network, gradient, losses.view(real.shape[:2]).mean(1)

    @torch.no_grad()
    def _train(self, network: Trained, steps: int, *counters: int) -> Trained:
        """The network after this many steps; ``counters`` determine its batches."""
        stream = generator(self.config.seed, "unrolled", *counters, device=self.device)
        images = self._decode(self._state.pixels)
        for _ in range(steps):
            network = self._training.take(network, self._draw_batch(images, stream))
        return network

    def _draw_batch(self, images: "StoredImages | Tensor", stream: torch.Generator) -> Batch:
        count = len(self.classes) * self._decoded
        rows = torch.randperm(count, generator=stream, device=self.device)[: self._batch]
        return self._training.prepare(images[rows], rows // self._decoded, stream)

    def _decode(self, pixels: Tensor) -> "StoredImages | Tensor":
        """All training images, ``(n, C, H, W)``; tiles are decoded when they are indexed."""
        if self._basis is not None:
            return self._basis.decode(pixels).flatten(0, 1)
        return StoredImages(pixels.flatten(0, 1), self.config.factor)

    @torch.no_grad()
    def _clip(self, gradient: Tensor) -> Tensor:
        """``gradient``, scaled down if it is much longer than those before it."""
        norm = gradient.norm()
        limit = CLIP * self._square.sqrt()
        first = self._square == 0
        scale = torch.where(first, 1.0, (limit / norm.clamp_min(1e-30)).clamp(max=1))
        square = (norm * scale).square()
        self._square.copy_(torch.where(first, square, self._square.lerp(square, 1 - CLIP_DECAY)))
        return gradient * scale

    def _next_real(self) -> Tensor:
        """The next real images of every class, uint8 ``(C, n, channels, H, W)``."""
        if self._batches is None:
            cycle = self.real.batches(self.chunks, self.config.real_batch)
            self._batches = self._loading.enter_context(cycle)
        return next(self._batches)
