"""One step of a chunk of classes, from fixed buffers into fixed buffers, without the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from ..augment import UNIFORMS
from ..config import MAX_DECODED, ResolvedConfig
from ..methods import METHODS
from ..methods.protocol import Views
from ..networks.arithmetic import convolutions
from ..synthetic import decode
from .embedding import Embedder
from .pixel_store import Moving


@dataclass
class Buffers:
    """What a chunk is stepped from and into; a smaller one uses the first rows.

    Attributes:
        moving: pixels and momentum, updated.
        real: uint8 ``(k, n, channels, H, W)``.
        draws: augmentation, ``(k, UNIFORMS)``.
        shown: which decoded images are used, int64 ``(k, MAX_DECODED)``; None for all.
        losses: ``(k,)``, written when the value is wanted.
        finite: bool ``(k,)``, whether a class's gradient was, written.
    """

    moving: Moving
    real: Tensor
    draws: Tensor
    shown: Tensor | None
    losses: Tensor
    finite: Tensor

    @classmethod
    def empty(
        cls, config: ResolvedConfig, classes: int, image_shape: Sequence[int], device: torch.device
    ) -> "Buffers":
        """Room for so many classes, of black images."""
        images = (classes, config.ipc, *image_shape)
        real = (classes, config.real_batch, *image_shape)
        some = config.decoded_per_class > MAX_DECODED
        return cls(
            Moving(torch.zeros(images, device=device), torch.zeros(images, device=device)),
            torch.zeros(real, dtype=torch.uint8, device=device),
            torch.zeros(classes, UNIFORMS, device=device),
            torch.arange(MAX_DECODED, device=device).repeat(classes, 1) if some else None,
            torch.zeros(classes, device=device),
            torch.zeros(classes, dtype=torch.bool, device=device),
        )


class ChunkStep:
    """Steps the first ``count`` classes of its buffers once.

    Args:
        config: resolved settings.
        embedder: network of the moment.
        buffers: see there.
    """

    def __init__(self, config: ResolvedConfig, embedder: Embedder, buffers: Buffers) -> None:
        self._config, self._embedder, self._buffers = config, embedder, buffers
        self._method = METHODS[config.method]

    def __call__(self, count: int, value: bool) -> None:
        """Update pixels and momentum; write ``finite``, and ``losses`` if ``value``."""
        config, buffers, rows = self._config, self._buffers, slice(count)
        moving, draws = buffers.moving.rows(rows), buffers.draws[rows]
        leaf = moving.pixels.detach().requires_grad_()
        with convolutions(self._embedder.device, config.precision):
            synthetic = self._shown(decode(leaf, config.factor), rows)
            losses, objective = self._method(
                self._embedder, Views(buffers.real[rows], draws), Views(synthetic, draws), value
            )
            with record_function("backward"):
                (gradient,) = torch.autograd.grad(objective, leaf)
        with record_function("update"):
            moving.step_(gradient, config.lr_img, config.momentum)
            buffers.finite[rows] = gradient.isfinite().flatten(1).all(1)
            if losses is not None:
                buffers.losses[rows] = losses

    def _shown(self, images: Tensor, rows: slice) -> Tensor:
        """The decoded images ``(k, m, ...)`` that take part in this step."""
        if self._buffers.shown is None:
            return images
        classes, count = images.shape[:2]
        first = torch.arange(0, classes * count, count, device=images.device)[:, None]
        chosen = images.flatten(0, 1).index_select(0, (self._buffers.shown[rows] + first).flatten())
        return chosen.unflatten(0, (classes, -1))
