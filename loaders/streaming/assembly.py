"""Batches assembled on the device while it computes on earlier ones."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Some images of a batch.

    Attributes:
        positions: theirs in the batch.
        images: uint8 ``(n, C, H, W)``: one per position or, with ``indices``, any number on the
            device.
        indices: int64 on the host, which of ``images`` each position gets; None for all in order.
    """

    positions: slice
    images: Tensor
    indices: Tensor | None


class HostAssembler:
    """Assembles batches in RAM; a batch of one whole part is passed on without a copy.

    A context. Args: ``image_shape`` is ``(C, H, W)``, ``layout`` that of all parts in memory.
    """

    def __init__(self, image_shape: tuple[int, ...], layout: torch.memory_format) -> None:
        self._shape = image_shape
        self._layout = layout
        self._buffer = torch.empty((0, *image_shape), dtype=torch.uint8)

    def assemble(self, count: int, parts: list[Part]) -> Tensor:
        """Batch of ``count`` images, valid until the next one is requested."""
        if len(parts) == 1 and parts[0].indices is None:
            return parts[0].images
        if len(self._buffer) < count:
            self._buffer = torch.empty(
                (count, *self._shape), dtype=torch.uint8, memory_format=self._layout
            )
        _write_parts(self._buffer, parts)
        return self._buffer[:count]

    def finish_copies(self) -> None:
        """Do nothing: copies in RAM are complete when they return."""

    def __enter__(self) -> "HostAssembler":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@dataclass
class _Slot:
    buffer: Tensor
    staging: Tensor | None
    copied: torch.cuda.Event
    released: torch.cuda.Event


class DeviceAssembler:
    """Assembles batches on a CUDA device: two buffers, filled in turn on a separate stream.

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
        self._assembled = 0  # batches

    def assemble(self, count: int, parts: list[Part]) -> Tensor:
        """Batch of ``count`` images, valid until the next one is requested."""
        slot = self._next_slot(count)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.released)
            _write_parts(slot.buffer, [self._pin(part, slot) for part in parts])
            slot.copied.record()
        torch.cuda.current_stream(self._device).wait_event(slot.copied)
        self._assembled += 1
        return slot.buffer[:count]

    def finish_copies(self) -> None:
        """Wait until the host tensors of the last batch are copied, and may change."""
        if self._assembled:
            self._slots[(self._assembled - 1) % 2].copied.synchronize()

    def __enter__(self) -> "DeviceAssembler":
        return self

    def __exit__(self, *_: object) -> None:
        # buffers are freed with this object, and nothing may write to them then
        self._stream.synchronize()

    def _next_slot(self, count: int) -> _Slot:
        # the consumer's kernels on the batch before are queued by now
        if self._assembled:
            last = self._slots[(self._assembled - 1) % 2]
            last.released.record(torch.cuda.current_stream(self._device))
        number = self._assembled % 2
        if number < len(self._slots) and len(self._slots[number].buffer) >= count:
            return self._slots[number]
        slot = _Slot(
            self._allocate(count, device=self._device),
            None,
            torch.cuda.Event(),
            torch.cuda.Event(),
        )
        # memory of the consumer's stream: what was queued on it before comes first
        slot.released.record(torch.cuda.current_stream(self._device))
        self._slots[number : number + 1] = [slot]
        return slot

    def _allocate(self, count: int, **options: Any) -> Tensor:
        shape = (count, *self._shape)
        return torch.empty(shape, dtype=torch.uint8, memory_format=self._layout, **options)

    def _pin(self, part: Part, slot: _Slot) -> Part:
        """The part in memory from which copies are asynchronous."""
        if part.indices is not None:
            indices = part.indices.pin_memory().to(self._device, non_blocking=True)
            return part._replace(indices=indices)
        if part.images.is_pinned():
            return part
        if slot.staging is None:
            slot.staging = self._allocate(len(slot.buffer), pin_memory=True)
        slot.copied.synchronize()
        staged = slot.staging[part.positions].copy_(part.images)
        return part._replace(images=staged)


def _write_parts(batch: Tensor, parts: list[Part]) -> None:
    for positions, images, indices in parts:
        if indices is None:
            batch[positions].copy_(images, non_blocking=True)
        else:
            torch.index_select(images, 0, indices, out=batch[positions])
