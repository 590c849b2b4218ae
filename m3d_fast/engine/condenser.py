"""The state of a condensation and its iteration (M3D, arXiv 2312.15927, algorithm 1)."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from ..augment import draw, parse_strategy
from ..common.errors import UserError
from ..common.seeds import generator
from ..config import MAX_DECODED, ResolvedConfig
from ..coreset import initial_pixels
from ..loaders import RealImages
from ..networks import build_network
from .chunk_step import Buffers, ChunkStep
from .chunking import cached_classes, equal_chunks, largest_fitting
from .cuda_graph import Replayed
from .embedding import Embedder
from .pixel_store import DevicePixels, HostPixels, fits_beside_a_chunk

log = logging.getLogger("m3d_fast")

MEASURED_STEPS = 3  # of a chunk, warm


class Step(NamedTuple):
    """What an iteration leaves behind, on the device.

    Attributes:
        losses: ``(C,)``; None if the value was not wanted.
        finite: bool ``(C,)``, whether the gradient of each class was.
        loader_seconds: how long the host waited for real images.
    """

    losses: Tensor | None
    finite: Tensor
    loader_seconds: float


class Condenser:
    """The state of a run's classes and their step.

    Every class is independent given the network, so ``classes`` may be any share of them: each
    takes the very steps it would take beside all others. An iteration does not wait for the device.
    Close it, or use it as a context, to end the loader's work.

    Args:
        config: resolved settings.
        real: training images of all classes.
        classes: those this condenser steps; None for all.
        host_pixels: whether pixels and momentum live in host memory; None: when they do not fit.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        real: RealImages,
        classes: range | None = None,
        *,
        host_pixels: bool | None = None,
    ) -> None:
        self.config, self.real, self.device = config, real, real.device
        self.classes = range(real.num_classes) if classes is None else classes
        self.embedder = Embedder(
            build_network(config.network, real.image_shape[0], config.size, real.num_classes),
            self.device,
            config.precision,
            config.compile,
            mean=real.mean,
            std=real.std,
            operations=parse_strategy(config.augment),
        )
        self._model: int | None = None  # which network is drawn
        if host_pixels is None:
            host_pixels = self._too_many_pixels()
        home = torch.device("cpu") if host_pixels else self.device
        pixels = initial_pixels(real, config, self.classes, device=home)
        self._rows = equal_chunks(len(self.classes), self._chunk_size())
        self.chunks = [self.classes[rows] for rows in self._rows]
        self._store = (
            HostPixels(pixels, self._rows, self.device)
            if host_pixels
            else DevicePixels(pixels, self._rows)
        )
        self._buffers = self._empty_buffers(max(len(chunk) for chunk in self.chunks))
        step = ChunkStep(config, self.embedder, self._buffers)
        self._advance: Callable[[int, bool], None] = (
            Replayed(step, self._buffers.moving, self.device) if config.cuda_graphs else step
        )
        self._batches: Iterator[Tensor] | None = None
        self._open = ExitStack()
        self.images_per_step = len(self.classes) * (
            config.real_batch + min(config.decoded_per_class, MAX_DECODED)
        )

    @property
    def pixels(self) -> Tensor:
        """Synthetic images of ``classes``, ``(C, ipc, channels, H, W)`` in [0, 1], where they live.

        The tensor itself, safe to read and write until the next step.
        """
        return self._store.settle().pixels

    def step(self, iteration: int, *, value: bool = True) -> Step:
        """Step every class once under the network of ``iteration``.

        Args:
            iteration: counts from 0; with the seed it determines network, draws and augmentation.
            value: whether the losses are wanted; gradients do not need them.
        """
        self._redraw_network(iteration)
        seed, count = self.config.seed, len(self.classes)
        first, last = self.classes.start, self.classes.stop
        stream = generator(seed, "augment", iteration, device=self.device)
        draws = draw(self.real.num_classes, stream)[first:last]
        shown = self._shown(iteration)
        losses = torch.empty(count, device=self.device) if value else None
        finite = torch.empty(count, dtype=torch.bool, device=self.device)
        loader_seconds = 0.0
        for number, rows in enumerate(self._rows):
            size, buffers = rows.stop - rows.start, self._buffers
            picked = None if shown is None else shown[rows]
            loader_seconds += self._load(number, draws[rows], picked)
            self._advance(size, value)
            with record_function("copy"):
                self._store.save(number, buffers.moving.rows(slice(size)))
                finite[rows] = buffers.finite[:size]
                if losses is not None:
                    losses[rows] = buffers.losses[:size]
        return Step(losses, finite, loader_seconds)

    def seconds_per_iteration(self) -> float:
        """Seconds that the steps of all chunks take, measured on one; leaves the state as it is."""
        self._redraw_network(0)
        size = max(map(len, self.chunks))
        start = 0.0
        for step in range(1 + MEASURED_STEPS):
            self._advance(size, False)  # what lies in the buffers: black images
            if step == 0:  # compiled and captured
                self._buffers.finite.cpu()
                start = time.perf_counter()
        self._buffers.finite.cpu()
        return (time.perf_counter() - start) / MEASURED_STEPS * len(self.classes) / size

    def close(self) -> None:
        """End the loader's work; the next step starts it again."""
        self._open.close()
        self._batches = None

    def __enter__(self) -> "Condenser":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(self, number: int, draws: Tensor, shown: Tensor | None) -> float:
        """Fill the buffers for a chunk; returns the seconds spent waiting for the loader."""
        if self._batches is None:
            cycle = self.real.batches(self.chunks, self.config.real_batch)
            self._batches = self._open.enter_context(cycle)
        with record_function("loader wait"):
            start = time.perf_counter()
            batch = next(self._batches)
            waited = time.perf_counter() - start
        buffers, rows = self._buffers, slice(len(draws))
        with record_function("copy"):
            self._store.load(number, buffers.moving.rows(rows))
            buffers.real[rows].copy_(batch, non_blocking=True)
            buffers.draws[rows] = draws
            if buffers.shown is not None and shown is not None:
                buffers.shown[rows] = shown
        return waited

    def _redraw_network(self, iteration: int) -> None:
        model = iteration // self.config.ipm
        if model != self._model:
            stream = generator(self.config.seed, "network", model, device=self.device)
            self.embedder.redraw(stream)
            self._model = model

    def _shown(self, iteration: int) -> Tensor | None:
        """Indices ``(C, MAX_DECODED)`` of the decoded images of this step; None for all."""
        count = self.config.decoded_per_class
        if count <= MAX_DECODED:
            return None
        stream = generator(self.config.seed, "select", iteration, device=self.device)
        numbers = torch.rand(self.real.num_classes, count, generator=stream, device=self.device)
        return numbers.argsort(1)[self.classes.start : self.classes.stop, :MAX_DECODED]

    def _empty_buffers(self, classes: int) -> Buffers:
        return Buffers.empty(self.config, classes, self.real.image_shape, self.device)

    def _too_many_pixels(self) -> bool:
        """Whether pixels and momentum leave a GPU too little room."""
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        numbers = len(self.classes) * self.config.ipc * torch.Size(self.real.image_shape).numel()
        if fits_beside_a_chunk(4 * numbers, free):
            return False
        log.info("pixels and momentum, %.1f GB, live in host memory", 8 * numbers / 1e9)
        return True

    def _chunk_size(self) -> int:
        """Classes stepped together: as given, as caches hold, or as free GPU memory does."""
        if self.config.class_chunk is not None:
            return self.config.class_chunk
        if self.device.type == "cpu":
            return cached_classes(min(self.config.decoded_per_class, MAX_DECODED))
        free, _ = torch.cuda.mem_get_info(self.device)
        self._redraw_network(0)
        return largest_fitting(self._peak, len(self.classes), free)

    def _peak(self, classes: int) -> int:
        """Bytes that stepping so many classes takes at its height, on the GPU."""
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        ChunkStep(self.config, self.embedder, self._empty_buffers(classes))(classes, True)
        return torch.cuda.max_memory_allocated(self.device) - before

    def state(self) -> dict[str, Tensor]:
        """Everything a run needs to go on, with the iteration number."""
        moving = self._store.settle()
        sampler = {f"sampler.{k}": torch.from_numpy(v) for k, v in self.real.state_dict().items()}
        return {"pixels": moving.pixels, "momentum": moving.momentum, **sampler}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from :meth:`state`.

        Raises:
            UserError: if the tensors are not those of this run.
        """
        self.close()
        own = self.state()
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if shapes != {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}:
            raise UserError("the checkpoint holds tensors of other shapes than this run's")
        for name, tensor in self._store.settle()._asdict().items():
            tensor.copy_(tensors[name])
        self.real.load_state_dict(
            {
                name.removeprefix("sampler."): tensor.numpy()
                for name, tensor in tensors.items()
                if name.startswith("sampler.")
            }
        )
