"""Where the synthetic pixels and their momentum live between steps, and how a step updates them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.pinned import empty_pinned
from ..config import ResolvedConfig

ADAM_DECAY, ADAM_EPSILON = 0.999, 1e-8  # of the squares, under which eps is added: torch's


class PixelState(NamedTuple):
    """Synthetic images of some classes, the state of their optimiser, and their average over steps.

    Attributes:
        pixels: ``(C, ipc, channels, H, W)`` float32 in [0, 1].
        momentum: of the same shape, in units of the gradient.
        average: exponential moving average of the pixels; None in a run without.
        squares: of Adam, moving average of the squared gradient; None of SGD.
        steps: of Adam, steps taken, float32 ``(C, 1, 1, 1, 1)``; None of SGD.
    """

    pixels: Tensor
    momentum: Tensor
    average: Tensor | None = None
    squares: Tensor | None = None
    steps: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are kept, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def copy_(self, source: "PixelState") -> None:
        """Copy the values of ``source``, without waiting for the device."""
        others = source.tensors()
        for name, own in self.tensors().items():
            own.copy_(others[name], non_blocking=True)

    def rows(self, rows: slice) -> "PixelState":
        """Views of some classes."""
        return self._map(lambda tensor: tensor[rows])

    def empty_like(self, classes: int, device: torch.device) -> "PixelState":
        """Uninitialised tensors for this many classes on ``device``."""
        return self._map(lambda tensor: torch.empty(classes, *tensor.shape[1:], device=device))

    @classmethod
    def start(cls, pixels: Tensor, config: ResolvedConfig) -> "PixelState":
        """What a run needs beside ``pixels``, in memory of their kind, pinned if it is.

        Args:
            pixels: before the first step.
            config: ``average`` and ``optimizer`` are used.
        """
        pinned = pixels.is_pinned()

        def allocate(like: Tensor) -> Tensor:
            return empty_pinned(like.shape) if pinned else torch.empty_like(like)

        adam = config.optimizer == "adam"
        return cls(
            pixels,
            momentum=allocate(pixels).zero_(),
            average=allocate(pixels).copy_(pixels) if config.average else None,
            squares=allocate(pixels).zero_() if adam else None,
            steps=allocate(pixels[:, :1, :1, :1, :1]).zero_() if adam else None,
        )

    @torch.no_grad()
    def step_(
        self,
        gradient: Tensor,
        lr: float,
        momentum: float,
        average: float = 0.0,
        share: Tensor | None = None,
    ) -> None:
        """One step of SGD or, where there are squares, of Adam, then clamp to [0, 1].

        SGD's is bit for bit that of ``torch.optim.SGD``, Adam's (arXiv 1412.6980) that of
        ``torch.optim.Adam`` to rounding.

        Args:
            gradient: of the loss in the pixels.
            lr: learning rate.
            momentum: share of the momentum that stays; Adam's first beta.
            average: share of the average that stays.
            share: of the learning rate, on the device, ``()`` or one for each number of a class;
                None for all of it.
        """
        if self.squares is None or self.steps is None:
            self.momentum.mul_(momentum).add_(gradient)
            step = self.momentum if share is None else self.momentum * share
            self.pixels.add_(step, alpha=-lr)
        else:
            self.steps.add_(1)
            self.momentum.lerp_(gradient, 1 - momentum)
            self.squares.mul_(ADAM_DECAY).addcmul_(gradient, gradient, value=1 - ADAM_DECAY)
            seen = -torch.expm1(self.steps * math.log(ADAM_DECAY))  # 1 - decay^steps
            size = (self.squares / seen).sqrt_().add_(ADAM_EPSILON)
            step = self.momentum / (1 - momentum**self.steps)
            self.pixels.addcdiv_(step if share is None else step * share, size, value=-lr)
        self.pixels.clamp_(0, 1)
        if self.average is not None:
            self.average.lerp_(self.pixels, 1 - average)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "PixelState":
        return PixelState(**{name: function(tensor) for name, tensor in self.tensors().items()})


def state_bytes(config: ResolvedConfig, classes: int, image_shape: Sequence[int]) -> int:
    """Bytes of the pixel state of ``classes``, float32."""
    tensors = 2 + (config.average > 0) + (config.optimizer == "adam")
    return tensors * 4 * classes * config.ipc * math.prod(image_shape)


def fits_on_device(state: int, free: int) -> bool:
    """Whether a pixel state of ``state`` bytes leaves half of the ``free`` ones to the chunks."""
    return state <= free // 2


class DevicePixels:
    """All classes live on the device; a chunk is copied in and out.

    Args:
        state: of all classes, on the device.
        chunks: rows of each chunk.
    """

    def __init__(self, state: PixelState, chunks: Sequence[slice]) -> None:
        self.all, self._chunks = state, chunks

    def load(self, chunk: int, target: PixelState) -> None:
        """Copy the chunk of this number to ``target``."""
        target.copy_(self.all.rows(self._chunks[chunk]))

    def save(self, chunk: int, source: PixelState) -> None:
        """Copy the chunk of this number back from ``source``."""
        self.all.rows(self._chunks[chunk]).copy_(source)

    def settle(self) -> PixelState:
        """All classes, readable and writable by the host once this returns."""
        return self.all


class HostPixels:
    """All classes live in host memory, pinned for a GPU; the next chunk is fetched during a step.

    Copies run in order on a stream of their own, between the host and two staging areas on the
    device. On a CPU they are the same copies, made at once.

    Args:
        state: of all classes, on the host.
        chunks: rows of each chunk.
        device: where chunks are stepped.
    """

    STAGING_AREAS = 2  # on the device, of one chunk each

    def __init__(self, state: PixelState, chunks: Sequence[slice], device: torch.device) -> None:
        self.all, self._chunks = state, chunks
        most = max(rows.stop - rows.start for rows in chunks)
        areas = [state.empty_like(most, device) for _ in range(self.STAGING_AREAS)]
        self._incoming, self._outgoing = areas
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staged: int | None = None  # the chunk in _incoming
        self._fetched: torch.cuda.Event | None = None
        self._saved: torch.cuda.Event | None = None

    def load(self, chunk: int, target: PixelState) -> None:
        """Copy the chunk of this number to ``target``, and start to fetch the next one."""
        if self._staged != chunk:
            self._fetch(chunk)
        self._wait_for(self._fetched)
        target.copy_(self._incoming.rows(slice(len(target.pixels))))
        self._staged = None
        following = (chunk + 1) % len(self._chunks)
        if following != chunk:  # a single chunk is out of date until it is saved
            self._fetch(following)

    def save(self, chunk: int, source: PixelState) -> None:
        """Copy the chunk of this number back from ``source``, while the next one is stepped."""
        outgoing = self._outgoing.rows(slice(len(source.pixels)))
        self._wait_for(self._saved)  # the copy of the chunk before, out of _outgoing
        outgoing.copy_(source)
        self._saved = self._queue_copy(self.all.rows(self._chunks[chunk]), outgoing)

    def settle(self) -> PixelState:
        """All classes, readable and writable by the host once this returns."""
        if self._stream is not None:
            self._stream.synchronize()
        self._staged = None  # the host may write
        return self.all

    def _fetch(self, chunk: int) -> None:
        rows = self._chunks[chunk]
        incoming = self._incoming.rows(slice(rows.stop - rows.start))
        self._fetched = self._queue_copy(incoming, self.all.rows(rows))
        self._staged = chunk

    def _queue_copy(self, target: PixelState, source: PixelState) -> torch.cuda.Event | None:
        """Copy on the copying stream, after all work queued so far on both streams."""
        if self._stream is None:
            target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source)
        return self._stream.record_event()

    def _wait_for(self, copied: torch.cuda.Event | None) -> None:
        if self._stream is not None and copied is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(copied)
