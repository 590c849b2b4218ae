"""What a frozen network says of real and synthetic images; its weights change in place."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from ..augment import augment
from ..common.seeds import generator
from ..methods.protocol import At, Network, Reading, Views
from ..networks.arithmetic import CPU_PIECE, compile_per_shape
from ..normalisation import Normalisation

Probe = Callable[[Network, Tensor, Tensor], Reading]


def choose_piece_size(count: int, limit: int) -> int:
    """A size of at most ``limit`` to cut ``count`` items by, if possible into equal pieces.

    A compiled function is compiled once per shape, so unequal pieces cost a compilation; sizes of
    less than half the limit would cost more.
    """
    for pieces in range(-(-count // limit), 2 * (count // limit) + 1):
        if count % pieces == 0:
            return count // pieces
    return min(count, limit)


class NetworkView:
    """The running copy of the network, as probes see it (:class:`m3d_fast.methods.Network`).

    One pass over the same images serves all that a probe reads of them.

    Args:
        module: the network, in the precision of the run.
        layout: of the images in memory.
        accuracy: of the network, ``()``.
        noise: random numbers of the iteration.
        expert: the network after all of its training, if there is one.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: torch.memory_format,
        accuracy: Tensor,
        noise: Tensor,
        expert: "NetworkView | None" = None,
    ) -> None:
        self.module, self._layout = module, layout
        self.accuracy, self.noise, self._expert = accuracy, noise, expert
        self._images: Tensor | None = None
        self._features: Tensor | None = None

    @property
    def expert(self) -> "NetworkView":
        """The network after all of its training."""
        assert self._expert is not None, "a method that reads experts sets Method.experts"
        return self._expert

    def embed(self, images: Tensor) -> Tensor:
        """Last features before the head, ``(k, n, D)`` float32."""
        if self._features is None or self._images is not images:
            embed = cast(Callable[[Tensor], Tensor], self.module.embed)
            self._keep(images, embed(self._flatten(images)))
        assert self._features is not None
        return self._features

    def maps(self, images: Tensor, at: At) -> tuple[Tensor, ...]:
        """Feature maps of every block, ``(k, n, C, h, w)`` in the precision of the run."""
        read = cast(
            Callable[[Tensor, At], tuple[tuple[Tensor, ...], Tensor]],
            self.module.maps,
        )
        maps, features = read(self._flatten(images), at)
        self._keep(images, features)
        return tuple(part.unflatten(0, images.shape[:2]) for part in maps)

    def classify(self, features: Tensor) -> Tensor:
        """Logits float32 of features ``(..., D)``."""
        head = cast(nn.Linear, self.module.head)
        return F.linear(features, head.weight.float(), head.bias.float())

    def _flatten(self, images: Tensor) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        return images.flatten(0, 1).to(dtype, memory_format=self._layout)

    def _keep(self, images: Tensor, features: Tensor) -> None:
        self._images = images
        self._features = features.float().unflatten(0, images.shape[:2])


class Embedder:
    """Normalises and augments images, and reads what the network of the iteration says of them.

    Args:
        network: has ``embed(images)``, ``maps(images, at)`` and ``head``.
        probe: what is read: (network, images, labels) to a Reading.
        probe_synthetic: what is read of synthetic images, if not the same.
        device: of the network and the images.
        precision: "bf16", "tf32" or "fp32"; features are float32 in any case.
        compile: whether to compile normalisation, augmentation, network and probe as one function.
        mean: per channel, pixels in [0, 1].
        std: per channel.
        operations: names of the augmentation's operations.
        experts: whether probes read the fully trained network too.
        noise_shape: of the random numbers that the probe finds in ``network.noise``.

    Attributes:
        normalise: the images, before they are augmented.
        network: float32 weights of the network of the iteration; :meth:`publish` what is written.
        accuracy: of the network, ``()`` float32, written in place.
        noise: random numbers of the iteration, written in place.
        expert: the fully trained network that runs, written in place; None without ``experts``.
    """

    def __init__(
        self,
        network: nn.Module,
        probe: Probe,
        device: torch.device,
        precision: str,
        compile: bool,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        operations: tuple[str, ...],
        probe_synthetic: Probe | None = None,
        noise_shape: tuple[int, ...] = (0,),
        experts: bool = False,
    ) -> None:
        self.network = network.requires_grad_(False).to(device)  # float32
        self.device, self.compiled, self.operations = device, compile, operations
        self.normalise = Normalisation(mean, std, device)
        # uncompiled, instance norm is slow on a CPU over channels-last tensors
        channels_last = device.type == "cuda" or compile
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # the copy that runs, in the precision and layout of the run
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._running_copy = copy.deepcopy(self.network).to(dtype)
        if channels_last:
            convert_to_channels_last(self._running_copy)
        self.expert = copy.deepcopy(self._running_copy) if experts else None
        self.accuracy = torch.zeros((), device=device)
        self.noise = torch.zeros(noise_shape, device=device)
        self._probe, self._probe_synthetic = probe, probe_synthetic or probe
        self._piece = CPU_PIECE if device.type == "cpu" else 1 << 30
        self._run: Callable[..., tuple[tuple[Tensor, ...], ...]] = self._prepare_and_read
        if compile:
            # fullgraph: falling back to eager raises instead of being silently slow
            self._run = compile_per_shape(self._prepare_and_read, fullgraph=True)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the parameters of ``network`` to the copy that runs, in place."""
        torch._foreach_copy_(list(self._running_copy.parameters()), list(self.network.parameters()))

    def draw_noise(self, seed: int, iteration: int) -> None:
        """Fill ``noise``, a function of seed and iteration alone, in place."""
        if self.noise.numel():
            self.noise.normal_(
                generator=generator(seed, "probe-noise", iteration, device=self.device)
            )

    @contextmanager
    def run_eagerly(self) -> Iterator[None]:
        """Within the block, do not compile: for shapes that are run once."""
        compiled, self.compiled = self.compiled, False
        try:
            yield
        finally:
            self.compiled = compiled

    def real(self, views: Views) -> Reading:
        """Read the network over real images, without gradient."""
        with torch.no_grad():
            return self._read_in_pieces(views, "real")

    def synthetic(self, views: Views) -> Reading:
        """Read the network over synthetic images, differentiable in them."""
        return self._read_in_pieces(views, "synthetic")

    def check_probes(self, image_shape: Sequence[int]) -> None:
        """Read two black images ``(C, H, W)``, so that what cannot be read is known before the run.

        Raises:
            UserError: of a probe, for a network without what it reads.
        """
        images = torch.zeros(1, 2, *image_shape, device=self.device)
        labels = torch.zeros(1, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for kind in ("real", "synthetic"):
                self._apply_probe(images, labels, kind)

    def _prepare(self, images: Tensor, draws: Tensor) -> Tensor:
        """Normalise and augment the images: ``(k, n, channels, H, W)`` float32."""
        return augment(self.normalise(images), draws, self.operations)

    def _read_in_pieces(self, views: Views, kind: str) -> Reading:
        groups = []
        for pieces in self._pieces(views):
            readings = [self._read(piece, kind) for piece in pieces]
            groups.append(_join_pieces(readings, [piece.images.shape[1] for piece in pieces]))
        return _join_classes(groups)

    def _pieces(self, views: Views) -> Iterator[list[Views]]:
        """Groups of classes, each cut along its images into pieces of at most ``_piece`` images."""
        classes, count = views.images.shape[:2]
        images = choose_piece_size(count, self._piece)
        together = choose_piece_size(classes, max(1, self._piece // count))
        groups = zip(*(tensor.split(together) for tensor in views), strict=True)
        for rows, draws, labels in groups:
            yield [Views(part, draws, labels) for part in rows.split(images, 1)]

    def _read(self, views: Views, kind: str) -> Reading:
        if self.compiled:
            with record_function(f"network {kind}"):
                return Reading(*self._run(*views, kind))
        with record_function("augmentation"):
            images = self._prepare(views.images, views.draws)
        with record_function(f"network {kind}"):
            return self._apply_probe(images, views.labels, kind)

    def _prepare_and_read(
        self, images: Tensor, draws: Tensor, labels: Tensor, kind: str
    ) -> tuple[tuple[Tensor, ...], ...]:
        return tuple(self._apply_probe(self._prepare(images, draws), labels, kind))

    def _apply_probe(self, images: Tensor, labels: Tensor, kind: str) -> Reading:
        shared = (self._layout, self.accuracy, self.noise)
        expert = None if self.expert is None else NetworkView(self.expert, *shared)
        probe = self._probe if kind == "real" else self._probe_synthetic
        return probe(NetworkView(self._running_copy, *shared, expert), images, labels)


def _join_pieces(readings: list[Reading], sizes: list[int]) -> Reading:
    """One reading of pieces of the same classes' images; ``sizes`` counts the images of each."""
    if len(readings) == 1:
        return readings[0]
    each = tuple(torch.cat(parts, 1) for parts in zip(*(r.each for r in readings), strict=True))
    shares = [size / sum(sizes) for size in sizes]
    mean = []
    for parts in zip(*(r.mean for r in readings), strict=True):
        total = parts[0] * shares[0]
        for part, share in zip(parts[1:], shares[1:], strict=True):
            total.add_(part, alpha=share)
        mean.append(total)
    return Reading(each, tuple(mean))


def _join_classes(readings: list[Reading]) -> Reading:
    if len(readings) == 1:
        return readings[0]
    parts = (zip(*tensors, strict=True) for tensors in zip(*readings, strict=True))
    each, mean = (tuple(torch.cat(tensors) for tensors in part) for part in parts)
    return Reading(each, mean)


def convert_to_channels_last(network: nn.Module) -> None:
    """Give the weights of convolutions channels-last strides, also those of one input channel.

    torch treats a weight of one input channel as contiguous in either layout, and then convolves 8x
    slower (1 to 128 channels, 28 px, bf16, CPU).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            _, inputs, height, width = module.weight.shape
            strides = (height * width * inputs, 1, width * inputs, inputs)
            weight = module.weight.new_empty_strided(module.weight.shape, strides)
            module.weight = nn.Parameter(weight.copy_(module.weight), requires_grad=False)
