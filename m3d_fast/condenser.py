"""One step of the condensation (M3D, arXiv 2312.15927, algorithm 1): state and computation."""

import itertools

import torch
from torch import Tensor

from .augment import augment, draw, parse_strategy
from .config import MAX_DECODED, ResolvedConfig
from .coreset import initial_pixels
from .embedding import Embedder
from .errors import UserError
from .loaders import RealImages
from .methods import METHODS
from .networks import build_network
from .randomness import generator
from .synthetic import decode

CPU_SYNTHETIC_IMAGES = 64  # decoded images per chunk on a CPU: their activations stay in its caches


def choose_chunk(config: ResolvedConfig, num_classes: int) -> int:
    """Classes stepped together: as many as caches (CPU) or free memory (CUDA) hold."""
    if config.chunk is not None:
        return min(config.chunk, num_classes)
    decoded = min(config.decoded_per_class, MAX_DECODED)
    if config.device == "cpu":
        return min(num_classes, max(1, CPU_SYNTHETIC_IMAGES // decoded))
    # activations of the widest layer, 128 channels of 2 bytes, about a dozen of them alive
    per_image = 128 * config.size**2 * 2 * 12
    free, _ = torch.cuda.mem_get_info(torch.device(config.device))
    return min(num_classes, max(1, int(free * 0.5) // (per_image * (decoded + config.real_batch))))


class Condenser:
    """The state of a run's classes and their step.

    Every class is independent given the network, so ``classes`` may be any share of them: each
    takes the very steps it would take beside all others.

    Args:
        config: resolved settings.
        real: training images of all classes.
        classes: those this condenser steps; None for all.
    """

    def __init__(
        self, config: ResolvedConfig, real: RealImages, classes: range | None = None
    ) -> None:
        self.config, self.real, self.device = config, real, real.device
        self.classes = range(real.num_classes) if classes is None else classes
        self.factor, self.real_batch = config.factor, config.real_batch
        self.operations = parse_strategy(config.augment)
        channels = real.image_shape[0]
        network = build_network(config.network, channels, config.size, real.num_classes)
        self.embedder = Embedder(network, self.device, config.precision, config.compile)
        self.method = METHODS[config.method]
        self.pixels = initial_pixels(
            real, config, self.classes
        ).requires_grad_()  # (C, ipc, ch, H, W)
        self.pixels.grad = torch.zeros_like(self.pixels)
        self.optimizer = torch.optim.SGD([self.pixels], config.lr_img, config.momentum)
        self._model: int | None = None  # which network is drawn
        self.mean = torch.tensor(real.mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(real.std, device=self.device).view(-1, 1, 1)
        pieces = -(-len(self.classes) // choose_chunk(config, len(self.classes)))
        bounds = [len(self.classes) * piece // pieces for piece in range(pieces + 1)]
        self.chunks = [self.classes[a:b] for a, b in itertools.pairwise(bounds)]
        self.images_per_step = len(self.classes) * (
            self.real_batch + min(config.decoded_per_class, MAX_DECODED)
        )

    def step(self, iteration: int) -> Tensor:
        """Step every class once under the network of ``iteration``; returns their losses."""
        seed = self.config.seed
        model = iteration // self.config.ipm
        if model != self._model:
            self.embedder.redraw(generator(seed, "network", model, device=self.device))
            self._model = model
        draws = draw(
            self.real.num_classes, generator(seed, "augment", iteration, device=self.device)
        )
        shown = self._shown(iteration)
        losses = torch.cat([self._chunk_loss(chunk, draws, shown) for chunk in self.chunks])
        self.optimizer.step()
        with torch.no_grad():
            self.pixels.clamp_(0, 1)
        return losses

    def _chunk_loss(self, chunk: range, draws: Tensor, shown: Tensor | None) -> Tensor:
        """Losses of a chunk of classes; leaves the gradient of its pixels in ``pixels.grad``."""
        real = self.real.batch(chunk, self.real_batch).float() / 255
        first = chunk.start - self.classes.start
        rows = slice(first, first + len(chunk))
        leaf = self.pixels.detach()[rows].requires_grad_()
        synthetic = decode(leaf, self.factor)
        if shown is not None:
            row = torch.arange(len(chunk), device=self.device)[:, None]
            synthetic = synthetic[row, shown[chunk.start : chunk.stop]]
        draws = draws[chunk.start : chunk.stop]
        loss = self.method(
            self.embedder, self._augmented(real, draws), self._augmented(synthetic, draws)
        )
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert self.pixels.grad is not None
        self.pixels.grad[rows] = gradient
        return loss.detach()

    def _augmented(self, images: Tensor, draws: Tensor) -> Tensor:
        return augment((images - self.mean) / self.std, draws, self.operations)

    def _shown(self, iteration: int) -> Tensor | None:
        """Indices ``(C, MAX_DECODED)`` of the decoded images of this step; None for all."""
        count = self.config.decoded_per_class
        if count <= MAX_DECODED:
            return None
        stream = generator(self.config.seed, "select", iteration, device=self.device)
        numbers = torch.rand(self.real.num_classes, count, generator=stream, device=self.device)
        return numbers.argsort(1)[:, :MAX_DECODED]

    def state(self) -> dict[str, Tensor]:
        """Everything a run needs to go on, with the iteration number."""
        momentum = self.optimizer.state[self.pixels].get("momentum_buffer")
        if momentum is None:
            momentum = torch.zeros_like(self.pixels)
        positions = {
            f"sampler.{name}": torch.from_numpy(value)
            for name, value in self.real.state_dict().items()
        }
        return {"pixels": self.pixels.detach(), "momentum": momentum, **positions}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`.

        Raises:
            UserError: if the tensors are not those of this run.
        """
        own = self.state()
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if shapes != {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}:
            raise UserError("the checkpoint holds tensors of other shapes than this run's")
        with torch.no_grad():
            self.pixels.copy_(tensors["pixels"])
        self.optimizer.state[self.pixels]["momentum_buffer"] = tensors["momentum"].to(self.device)
        self.real.load_state_dict(
            {
                name.removeprefix("sampler."): tensor.numpy()
                for name, tensor in tensors.items()
                if name.startswith("sampler.")
            }
        )
