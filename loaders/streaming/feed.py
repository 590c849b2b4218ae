"""How are batches put together on the device while it computes on earlier ones?"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Some images of a batch.

    Attributes:
        where: their places in the batch.
        images: uint8 ``(n, C, H, W)``, as many as places, or more where ``picked`` says which them.
        picked: int64 on the host, which of ``images``, these being on the device; None for all.
    """

    where: slice
    images: Tensor
    picked: Tensor | None


class HostFeed:
    """Puts batches together in RAM; one that comes whole is handed on as it is.

    A context. Args: ``image_shape`` is ``(C, H, W)``, ``layout`` that of all parts in memory.
    """

    def __init__(self, image_shape: tuple[int, ...], layout: torch.memory_format) -> None:
        self._shape = image_shape
        self._layout = layout
        self._buffer = torch.empty((0, *image_shape), dtype=torch.uint8)

    def __call__(self, count: int, parts: list[Part]) -> Tensor:
        """Batch of ``count`` images, valid until the next one is asked for."""
        if len(parts) == 1 and parts[0].picked is None:
            return parts[0].images
        if len(self._buffer) < count:
            self._buffer = torch.empty(
                (count, *self._shape), dtype=torch.uint8, memory_format=self._layout
            )
        _write(self._buffer, parts)
        return self._buffer[:count]

    def finish_copies(self) -> None:
        """Nothing is under way: copies in RAM are done when they return."""

    def __enter__(self) -> "HostFeed":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class _Slot:
    buffer: Tensor
    staging: Tensor | None
    copied: torch.cuda.Event
    released: torch.cuda.Event


class DeviceFeed:
    """Puts batches together on a CUDA device: two buffers, filled in turn on a stream of its own.

    While kernels work on one buffer the next batch is copied into the other. No batch is
    allocated, and the host waits only for copies out of memory that is about to change. A
    context. Args: ``image_shape`` is ``(C, H, W)``, ``layout`` that of all parts in memory,
    ``device`` the GPU.
    """

    def __init__(
        self, image_shape: tuple[int, ...], layout: torch.memory_format, device: torch.device
    ) -> None:
        self._shape = image_shape
        # a copy between layouts would stop the host
        self._layout = layout
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots: list[_Slot] = []
        self._handed_out = 0

    def __call__(self, count: int, parts: list[Part]) -> Tensor:
        """Batch of ``count`` images, valid until the next one is asked for."""
        slot = self._next_slot(count)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.released)
            _write(slot.buffer, [self._pinned(part, slot) for part in parts])
            slot.copied.record()
        torch.cuda.current_stream(self._device).wait_event(slot.copied)
        self._handed_out += 1
        return slot.buffer[:count]

    def finish_copies(self) -> None:
        """Wait until the host tensors of the last batch were copied: they may change then."""
        if self._handed_out:
            self._slots[(self._handed_out - 1) % 2].copied.synchronize()

    def __enter__(self) -> "DeviceFeed":
        return self

    def __exit__(self, *_: object) -> None:
        # buffers are freed with this object, and nothing may write to them then
        self._stream.synchronize()

    def _next_slot(self, count: int) -> _Slot:
        # the consumer's kernels on the batch before are queued by now
        if self._handed_out:
            last = self._slots[(self._handed_out - 1) % 2]
            last.released.record(torch.cuda.current_stream(self._device))
        number = self._handed_out % 2
        if number < len(self._slots) and len(self._slots[number].buffer) >= count:
            return self._slots[number]
        slot = _Slot(
            self._empty(count, device=self._device),
            None,
            torch.cuda.Event(),
            torch.cuda.Event(),
        )
        # memory of the consumer's stream: what was queued on it before comes first
        slot.released.record(torch.cuda.current_stream(self._device))
        self._slots[number : number + 1] = [slot]
        return slot

    def _empty(self, count: int, **where: Any) -> Tensor:
        shape = (count, *self._shape)
        return torch.empty(shape, dtype=torch.uint8, memory_format=self._layout, **where)

    def _pinned(self, part: Part, slot: _Slot) -> Part:
        """The part in memory from which copies are asynchronous."""
        if part.picked is not None:
            picked = part.picked.pin_memory().to(self._device, non_blocking=True)
            return part._replace(picked=picked)
        if part.images.is_pinned():
            return part
        if slot.staging is None:
            slot.staging = self._empty(len(slot.buffer), pin_memory=True)
        slot.copied.synchronize()
        staged = slot.staging[part.where].copy_(part.images)
        return part._replace(images=staged)


def _write(batch: Tensor, parts: list[Part]) -> None:
    for where, images, picked in parts:
        if picked is None:
            batch[where].copy_(images, non_blocking=True)
        else:
            torch.index_select(images, 0, picked, out=batch[where])
