"""The state of a condensation and its iteration (M3D, arXiv 2312.15927, algorithm 1)."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from ..augment import draw, parse_strategy
from ..basis import rates_of_numbers
from ..common.cuda_graph import CudaGraphRunner
from ..common.hardware import free_bytes
from ..common.seeds import generator
from ..config import ResolvedConfig
from ..initial import initial_pixels
from ..loaders import RealImages
from ..methods import Method
from ..networks import build_network
from ..run.checkpoint import NETWORKS, SAMPLER, check_shapes, select_by_prefix
from ..synthetic import decode
from .chunk_step import Buffers, ChunkStep
from .chunking import (
    choose_chunk_size,
    count_saturating_classes,
    find_largest_chunk,
    split_evenly,
)
from .embedding import Embedder
from .iteration import IterationResult
from .pixel_store import DevicePixels, HostPixels, PixelState, fits_on_device, state_bytes
from .sources.registry import build_source

log = logging.getLogger("m3d_fast")

MEASURED_STEPS = 3  # of a chunk, after the warm-up
FEED_SLOTS = 2  # batches of real images that a loader may keep on a GPU


class Condenser:
    """The state of a run's classes and their step.

    Every class, or group of classes, is independent given the network, so ``classes`` may be any
    share of them: each takes the steps it would take in a run of all classes. An iteration does not
    wait for the device. Close the condenser, or use it as a context, to stop the loader.

    Args:
        config: resolved settings.
        real: training images of all classes.
        classes: those this condenser steps; None for all.
        host_pixels: whether pixels and momentum live in host memory; None: if they do not fit.
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
        method = config.build_method()
        assert isinstance(method, Method), "others have a condenser of their own"
        self.method = method
        self.classes = range(real.num_classes) if classes is None else classes
        basis = config.build_basis(real.num_classes, real.image_shape)
        self._decode = partial(decode, factor=config.factor) if basis is None else basis.decode
        self._rates = rates_of_numbers(basis, self.device)
        self.embedder = self._build_embedder()
        self.embedder.check_probes(real.image_shape)
        # like the state, before the chunk's memory is measured: what is allocated counts as taken
        self._source = build_source(config, self.embedder, real, lambda: self._decode(self.pixels))
        if host_pixels is None:
            host_pixels = not self._pixels_fit_on_device()
        home = torch.device("cpu") if host_pixels else self.device
        pixels = initial_pixels(real, config, self.classes, device=home)
        state = PixelState.start(pixels, config)
        self._group = config.count_in_group(real.num_classes)
        self._rows = split_evenly(
            len(self.classes), self._choose_chunk_size(host_pixels), self._group
        )
        self.chunks = [self.classes[rows] for rows in self._rows]
        self._store = (
            HostPixels(state, self._rows, self.device)
            if host_pixels
            else DevicePixels(state, self._rows)
        )
        self._largest = max(map(len, self.chunks))
        self._buffers = self._allocate_buffers(self._largest)
        self._advance: Callable[[int, bool], None] = self._build_step()
        self._batches: Iterator[Tensor] | None = None
        self._loading = ExitStack()
        self._shown = config.synthetic_per_step  # decoded images of a class in one step
        self.images_per_step = len(self.classes) * (config.real_batch + self._shown)

    @property
    def pixels(self) -> Tensor:
        """What is stored of ``classes``, ``(C, ipc, channels, H, W)`` in [0, 1].

        The tensor itself, on its own device, safe to read and write until the next step.
        """
        return self._store.settle().pixels

    @property
    def pretraining_seconds(self) -> float:
        """Seconds that training the networks took before this run, or before another one; or 0."""
        return self._source.pretraining_seconds

    def step(self, iteration: int, *, value: bool = True) -> IterationResult:
        """Step every class once under the network of ``iteration``.

        Args:
            iteration: counts from 0; with the seed it determines network, draws and augmentation.
            value: whether to compute the losses; gradients do not need them.
        """
        self._source.load(iteration)
        seed, count = self.config.seed, len(self.classes)
        self.embedder.draw_noise(seed, iteration)
        first, last = self.classes.start, self.classes.stop
        stream = generator(seed, "augment", iteration, device=self.device)
        draws = draw(self.real.num_classes, stream)
        if self.config.draws == "all":
            draws = draws[:1].expand_as(draws)
        draws = draws[first:last]
        selected = self._select_decoded(iteration)
        if self._buffers.share is not None:
            # on the device: a graph keeps the numbers of the host as they were when it was captured
            share = self.config.share_of_rate(iteration)
            torch.mul(self._rates, share, out=self._buffers.share)
        shape = (count, len(self.method.terms))
        losses = torch.empty(shape, device=self.device) if value else None
        finite = torch.empty(count, dtype=torch.bool, device=self.device)
        loader_seconds = 0.0
        for number, rows in enumerate(self._rows):
            size, buffers = rows.stop - rows.start, self._buffers
            indices = None if selected is None else selected[rows]
            loader_seconds += self._load_chunk(number, draws[rows], indices)
            self._advance(size, value)
            with record_function("copy"):
                self._store.save(number, buffers.state.rows(slice(size)))
                finite[rows] = buffers.finite[:size]
                if losses is not None:
                    losses[rows] = buffers.losses[:size]
        with record_function("train networks"):
            self._source.update(iteration)
        return IterationResult(losses, finite, loader_seconds)

    def seconds_per_iteration(self) -> float:
        """Seconds of an iteration without loading, measured on a chunk; no state changes."""
        self._source.load(0)
        size = self._largest
        start = 0.0
        for step in range(1 + MEASURED_STEPS):
            self._advance(size, False)  # the buffers hold black images
            if step == 0:  # now compiled and captured
                self._buffers.finite.cpu()
                start = time.perf_counter()
        self._buffers.finite.cpu()
        seconds = (time.perf_counter() - start) / MEASURED_STEPS
        return seconds * len(self.classes) / size + self._source.seconds_per_update()

    def close(self) -> None:
        """Stop the loader; the next step starts it again."""
        self._loading.close()
        self._batches = None

    def __enter__(self) -> "Condenser":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load_chunk(self, number: int, draws: Tensor, selected: Tensor | None) -> float:
        """Fill the buffers for a chunk; returns the seconds spent waiting for the loader."""
        if self._batches is None:
            cycle = self.real.batches(self.chunks, self.config.real_batch)
            self._batches = self._loading.enter_context(cycle)
        with record_function("loader wait"):
            start = time.perf_counter()
            batch = next(self._batches)
            waited = time.perf_counter() - start
        buffers, rows = self._buffers, slice(len(draws))
        with record_function("copy"):
            self._store.load(number, buffers.state.rows(rows))
            buffers.real[rows].copy_(batch, non_blocking=True)
            buffers.draws[rows] = draws
            first = self.chunks[number].start
            torch.arange(first, first + len(draws), out=buffers.labels[rows])
            if buffers.selected is not None and selected is not None:
                buffers.selected[rows] = selected
        return waited

    def _select_decoded(self, iteration: int) -> Tensor | None:
        """Indices ``(C, m)`` of the decoded images of this step; None for all."""
        count, shown = self.config.decoded_per_class, self._shown
        if count == shown:
            return None
        stream = generator(self.config.seed, "select", iteration, device=self.device)
        numbers = torch.rand(self.real.num_classes, count, generator=stream, device=self.device)
        return numbers.argsort(1)[self.classes.start : self.classes.stop, :shown]

    def _build_embedder(self) -> Embedder:
        config, real = self.config, self.real
        network = build_network(config.network, real.image_shape[0], config.size, real.num_classes)
        return Embedder(
            network,
            self.method.probe,
            self.device,
            config.precision,
            config.compile,
            mean=real.mean,
            std=real.std,
            operations=parse_strategy(config.augment),
            probe_synthetic=self.method.probe_synthetic,
            noise_shape=self.method.noise_shape(cast(nn.Linear, network.head).in_features),
            experts=self.method.experts,
        )

    def _allocate_buffers(self, classes: int) -> Buffers:
        shape, terms = self.real.image_shape, len(self.method.terms)
        share = self._rates if self.config.changes_rate or self._rates.ndim else None
        return Buffers.allocate(self.config, classes, shape, terms, self.device, share)

    def _pixels_fit_on_device(self) -> bool:
        """Whether pixels and momentum leave a GPU enough memory for the chunks."""
        size = state_bytes(self.config, len(self.classes), self.real.image_shape)
        if self.device.type != "cuda" or fits_on_device(size, free_bytes(self.device)):
            return True
        log.info("pixels and momentum, %.1f GB, live in host memory", size / 1e9)
        return False

    def _build_step(self) -> Callable[[int, bool], None]:
        """A function that steps the first classes of the buffers, and may compute the value."""
        step = self._plan_step(self._buffers)
        largest = self._largest
        if not self.config.cuda_graphs:
            return step
        # one graph for all: rows beyond the chunk are stepped for nothing (chunks differ by one
        # class at most), and the value costs a GPU less than a second graph's memory
        runner = CudaGraphRunner(
            lambda: step(largest, True), list(self._buffers.state.tensors().values()), self.device
        )
        return lambda count, value: runner()

    def _choose_chunk_size(self, host_pixels: bool) -> int:
        """Classes stepped together: as set, or what a CPU's caches or a GPU hold."""
        count, network = len(self.classes), self.embedder.network
        known = choose_chunk_size(self.config, count, on_cpu=self.device.type == "cpu")
        if known is not None:
            return known
        images = max(self.config.real_batch, self.config.synthetic_per_step)
        most = count_saturating_classes(network, self.real.image_shape, images)
        self._source.load(0)
        return find_largest_chunk(
            lambda classes: self._measure_peak(classes, host_pixels),
            max(self._group, min(most, count) // self._group * self._group),
            free_bytes(self.device),
            self._group,
        )

    def _measure_peak(self, classes: int, host_pixels: bool) -> int:
        """Peak of the GPU bytes in use while this many classes are stepped and fed."""
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        buffers = self._allocate_buffers(classes)
        # they are allocated later: the loader's batches on their way, and staged pixels
        beside = [torch.empty_like(buffers.real) for _ in range(FEED_SLOTS)]
        if host_pixels:
            for _ in range(HostPixels.STAGING_AREAS):
                beside += buffers.state.empty_like(classes, self.device).tensors().values()
        with self.embedder.run_eagerly():  # most of these shapes are never run again
            self._plan_step(buffers)(classes, True)
        return torch.cuda.max_memory_allocated(self.device) - before

    def _plan_step(self, buffers: Buffers) -> ChunkStep:
        parts = (self.config, self.method, self.embedder, buffers, self._decode, self._group)
        return ChunkStep(*parts)

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs, besides the number of iterations done."""
        pixels = self._store.settle().tensors()
        positions = self.real.state_dict().items()
        samplers = {f"{SAMPLER}{name}": torch.from_numpy(v) for name, v in positions}
        networks = {f"{NETWORKS}{name}": tensor for name, tensor in self._source.state().items()}
        return pixels | samplers | networks

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            UserError: if the tensors are those of another run.
        """
        self.close()
        check_shapes(tensors, self.state())
        for name, tensor in self._store.settle().tensors().items():
            tensor.copy_(tensors[name])
        positions = select_by_prefix(tensors, SAMPLER).items()
        self.real.load_state_dict({name: tensor.numpy() for name, tensor in positions})
        self._source.load_state(select_by_prefix(tensors, NETWORKS))
