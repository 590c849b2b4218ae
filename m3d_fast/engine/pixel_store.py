"""Where the synthetic pixels and their momentum live between steps, and how a step moves them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moving(NamedTuple):
    """Synthetic images of some classes and the momentum of their SGD.

    Attributes:
        pixels: ``(C, ipc, channels, H, W)`` float32 in [0, 1].
        momentum: likewise, in units of the gradient.
    """

    pixels: Tensor
    momentum: Tensor

    def copy_(self, source: "Moving") -> None:
        """Take over the values of ``source``, without waiting for the device."""
        for own, other in zip(self, source, strict=True):
            own.copy_(other, non_blocking=True)

    def rows(self, rows: slice) -> "Moving":
        """Views of some classes."""
        return Moving(*(tensor[rows] for tensor in self))

    def like(self, classes: int, device: torch.device) -> "Moving":
        """Unwritten room for so many classes on ``device``."""
        shape = (classes, *self.pixels.shape[1:])
        return Moving(*(torch.empty(shape, device=device) for _ in self))

    @torch.no_grad()
    def step_(self, gradient: Tensor, lr: float, momentum: float) -> None:
        """One step of SGD, bit for bit that of ``torch.optim.SGD``, then clamp to [0, 1]."""
        self.momentum.mul_(momentum).add_(gradient)
        self.pixels.add_(self.momentum, alpha=-lr).clamp_(0, 1)


class DevicePixels:
    """All classes live on the device; a chunk is copied in and out.

    Args:
        pixels: of all classes, on the device.
        chunks: rows of each chunk.
    """

    def __init__(self, pixels: Tensor, chunks: Sequence[slice]) -> None:
        self.all, self._chunks = Moving(pixels, torch.zeros_like(pixels)), chunks

    def load(self, chunk: int, into: Moving) -> None:
        """Copy the chunk of that number to where it is stepped."""
        into.copy_(self.all.rows(self._chunks[chunk]))

    def save(self, chunk: int, stepped: Moving) -> None:
        """Copy it back."""
        self.all.rows(self._chunks[chunk]).copy_(stepped)

    def settle(self) -> Moving:
        """All classes, readable and writable by the host once this returns."""
        return self.all


class HostPixels:
    """All classes live in host memory, pinned for a GPU; the next chunk comes while one is stepped.

    Copies run in order on a stream of their own, between host and two staging areas on the device.
    On a CPU they are the same copies, one after the other.

    Args:
        pixels: of all classes, on the host.
        chunks: rows of each chunk.
        device: where chunks are stepped.
    """

    def __init__(self, pixels: Tensor, chunks: Sequence[slice], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.all = Moving(pixels, torch.zeros(pixels.shape, pin_memory=cuda))
        self._chunks = chunks
        most = max(rows.stop - rows.start for rows in chunks)
        self._coming, self._going = (self.all.like(most, device) for _ in range(2))
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._staged: int | None = None  # the chunk in _coming
        self._fetched: torch.cuda.Event | None = None
        self._saved: torch.cuda.Event | None = None

    def load(self, chunk: int, into: Moving) -> None:
        """Copy the chunk of that number to where it is stepped, and start fetching the next."""
        if self._staged != chunk:
            self._fetch(chunk)
        self._wait_for(self._fetched)
        into.copy_(self._coming.rows(slice(len(into.pixels))))
        self._staged = None
        following = (chunk + 1) % len(self._chunks)
        if following != chunk:  # a single chunk is not up to date before it is saved
            self._fetch(following)

    def save(self, chunk: int, stepped: Moving) -> None:
        """Copy it back while the next one is stepped."""
        going = self._going.rows(slice(len(stepped.pixels)))
        self._wait_for(self._saved)  # what _going held before
        going.copy_(stepped)
        self._saved = self._queue(self.all.rows(self._chunks[chunk]), going)

    def settle(self) -> Moving:
        """All classes, readable and writable by the host once this returns."""
        if self._stream is not None:
            self._stream.synchronize()
        self._staged = None  # the host may write
        return self.all

    def _fetch(self, chunk: int) -> None:
        rows = self._chunks[chunk]
        coming = self._coming.rows(slice(rows.stop - rows.start))
        self._fetched = self._queue(coming, self.all.rows(rows))
        self._staged = chunk

    def _queue(self, target: Moving, source: Moving) -> torch.cuda.Event | None:
        """Copy on the copying stream, after all that both streams were given so far."""
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


def fits_beside_a_chunk(pixels_bytes: int, free: int) -> bool:
    """Whether pixels and momentum leave half of the device's ``free`` bytes to the chunk."""
    return 2 * pixels_bytes <= free // 2
