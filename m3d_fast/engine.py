"""The condensation loop (M3D, arXiv 2312.15927, algorithm 1)."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from . import __version__
from .augment import augment, draw, parse_strategy
from .config import MAX_DECODED, CondenseConfig, ResolvedConfig
from .coreset import initial_pixels
from .embedding import Embedder
from .errors import UserError
from .interruption import Interrupted, stop_signals
from .loaders import RealImages, open_dataset
from .methods import METHODS
from .metrics import Metrics
from .networks import build_network
from .progress import Progress
from .randomness import derived_seed, generator
from .run import RunFolder, started_config
from .synthetic import SyntheticSet, decode

log = logging.getLogger("m3d_fast")

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
    """The state of one run and its step.

    Args:
        config: resolved settings.
        real: training images of all classes.
    """

    def __init__(self, config: ResolvedConfig, real: RealImages) -> None:
        self.config, self.real, self.device = config, real, real.device
        self.factor, self.real_batch = config.factor, config.real_batch
        self.operations = parse_strategy(config.augment)
        channels = real.image_shape[0]
        network = build_network(config.network, channels, config.size, real.num_classes)
        self.embedder = Embedder(network, self.device, config.precision, config.compile)
        self.method = METHODS[config.method]
        self.pixels = initial_pixels(real, config).requires_grad_()  # (C, ipc, ch, H, W)
        self.pixels.grad = torch.zeros_like(self.pixels)
        self.optimizer = torch.optim.SGD([self.pixels], config.lr_img, config.momentum)
        self._model: int | None = None  # which network is drawn
        self.mean = torch.tensor(real.mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(real.std, device=self.device).view(-1, 1, 1)
        self.chunks = torch.arange(real.num_classes).tensor_split(
            -(-real.num_classes // choose_chunk(config, real.num_classes))
        )
        self.images_per_step = real.num_classes * (
            self.real_batch + min(config.decoded_per_class, MAX_DECODED)
        )

    def step(self, iteration: int) -> Tensor:
        """Step every class once under the network of ``iteration``; returns the losses ``(C,)``."""
        seed, classes = self.config.seed, self.real.num_classes
        model = iteration // self.config.ipm
        if model != self._model:
            self.embedder.redraw(generator(seed, "network", model, device=self.device))
            self._model = model
        draws = draw(classes, generator(seed, "augment", iteration, device=self.device))
        shown = self._shown(iteration)
        losses = torch.cat([self._chunk_loss(chunk, draws, shown) for chunk in self.chunks])
        self.optimizer.step()
        with torch.no_grad():
            self.pixels.clamp_(0, 1)
        return losses

    def _chunk_loss(self, chunk: Tensor, draws: Tensor, shown: Tensor | None) -> Tensor:
        """Losses of a chunk of classes; leaves the gradient of its pixels in ``pixels.grad``."""
        first, last = int(chunk[0]), int(chunk[-1]) + 1
        real = self.real.batch(range(first, last), self.real_batch).float() / 255
        leaf = self.pixels.detach()[first:last].requires_grad_()
        synthetic = decode(leaf, self.factor)
        if shown is not None:
            rows = torch.arange(last - first, device=self.device)[:, None]
            synthetic = synthetic[rows, shown[first:last]]
        loss = self.method(
            self.embedder,
            self._augmented(real, draws[first:last]),
            self._augmented(synthetic, draws[first:last]),
        )
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert self.pixels.grad is not None
        self.pixels.grad[first:last] = gradient
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

    def synthetic_set(self, iterations: int) -> SyntheticSet:
        """The condensed set as it stands."""
        classes, ipc = self.pixels.shape[:2]
        return SyntheticSet(
            images=self.pixels.detach().flatten(0, 1).cpu().clone(),
            labels=torch.arange(classes).repeat_interleave(ipc),
            class_names=self.real.class_names,
            factor=self.factor,
            mean=self.real.mean,
            std=self.real.std,
            info={
                "dataset": self.config.dataset,
                "method": self.config.method,
                "iterations": iterations,
                "seed": self.config.seed,
                "version": __version__,
            },
        )

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


def condense(config: CondenseConfig, *, resume: bool = False) -> SyntheticSet:
    """Condense a data set into its run folder.

    The last iterate is kept; no test image is touched. Progress goes to the logger ``m3d_fast``.

    Args:
        config: settings; what is None takes the paper's value, or when resuming the run's.
        resume: go on from the run folder's checkpoint, if there is one.

    Returns:
        The condensed set, as in ``synthetic.safetensors``.

    Raises:
        UserError, DataError: for settings or data that cannot be, or a loss that is not finite.
        Interrupted: after Ctrl-C or SIGTERM, with the checkpoint saved.
    """
    settings = started_config(config, resume=resume).resolved()
    run = RunFolder(settings.out)
    run.check(settings, resume=resume)
    real = open_dataset(
        settings.dataset,
        settings.data_root,
        size=settings.size,
        device=settings.device,
        seed=derived_seed(settings.seed, "sampling"),
    )
    smallest = min(real.class_sizes)
    if settings.ipc > smallest:
        raise UserError(
            f"ipc: expected at most the {smallest} images of the smallest class, got {settings.ipc}"
        )
    settings = replace(settings, chunk=choose_chunk(settings, real.num_classes))
    condenser = Condenser(settings, real)
    run.start(settings, resume=resume)
    _run_loop(condenser, run)
    synthetic = condenser.synthetic_set(settings.iterations)
    synthetic.save(run.synthetic_file)
    grid, *_ = run.save_pictures(synthetic)
    log.info("condensed set: %s, picture: %s", run.synthetic_file, grid)
    return synthetic


def _run_loop(condenser: Condenser, run: RunFolder) -> None:
    config, total = condenser.config, condenser.config.iterations
    first = _restore(condenser, run)
    metrics = Metrics(run, condenser.real.class_names, first)
    log.info(_summary(config, condenser, first))
    progress = Progress("condense", total, done=first, images_per_step=condenser.images_per_step)
    with stop_signals() as stopped, metrics, progress:
        for iteration in range(first, total):
            metrics.add(condenser.step(iteration))
            done = iteration + 1
            if done % config.log_every == 0 or done == total or stopped():
                progress.update(done, f"loss {metrics.flush():.5f}")
            if done % config.checkpoint_every == 0 or done == total or stopped():
                metrics.flush()
                run.save_checkpoint(condenser.state(), done)
            if stopped() and done < total:
                raise Interrupted(
                    f"interrupted after iteration {done}, checkpoint saved; go on with: "
                    f"python -m m3d_fast.condense --out {run.path} --resume"
                )


def _restore(condenser: Condenser, run: RunFolder) -> int:
    """Load the run's checkpoint, if any; returns the iterations done."""
    checkpoint = run.load_checkpoint()
    iteration = 0
    if checkpoint is not None:
        tensors, iteration = checkpoint
        condenser.load_state(tensors)
        log.info("resumed after iteration %d from %s", iteration, run.checkpoint_file)
    run.rewind_metrics(iteration)
    return iteration


def _summary(config: ResolvedConfig, condenser: Condenser, first: int) -> str:
    compiled = "compiled" if config.compile else "eager"
    return (
        f"{config.method} on {config.dataset}: {condenser.real.num_classes} classes x {config.ipc} "
        f"images of {config.size} px, factor {config.factor}, iterations {first} to "
        f"{config.iterations}, {config.network} {config.precision} {compiled} on {config.device}, "
        f"{config.chunk} classes at a time, run folder {config.out}"
    )
