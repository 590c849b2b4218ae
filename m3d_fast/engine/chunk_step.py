"""One step of a chunk of classes, from fixed buffers into fixed buffers, without the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from ..augment import UNIFORMS
from ..config import ResolvedConfig
from ..methods import Method, Reading, Views
from ..networks.arithmetic import convolutions
from .embedding import Embedder
from .pixel_store import PixelState


@dataclass
class Buffers:
    """Inputs and outputs of the step of a chunk; a smaller chunk uses the first rows.

    Attributes:
        state: pixels and what their optimiser keeps, updated in place.
        real: uint8 ``(k, n, channels, H, W)``.
        draws: augmentation, ``(k, UNIFORMS)``.
        labels: numbers of the classes, int64 ``(k,)``.
        selected: indices of the decoded images in use, int64 ``(k, m)``; None for all.
        losses: ``(k, terms)``, written if the value is requested.
        finite: bool ``(k,)``, whether the gradient of each class is finite; written.
        share: of the learning rate, float32 ``()``, or ``(ipc, channels, H, W)`` where the numbers
            of a class differ in it; None of a rate that stays what it is.
    """

    state: PixelState
    real: Tensor
    draws: Tensor
    labels: Tensor
    selected: Tensor | None
    losses: Tensor
    finite: Tensor
    share: Tensor | None

    @classmethod
    def allocate(
        cls,
        config: ResolvedConfig,
        classes: int,
        image_shape: Sequence[int],
        terms: int,
        device: torch.device,
        share: Tensor | None,
    ) -> "Buffers":
        """Buffers for this many classes and terms of the loss, filled with black images."""
        images = (classes, config.ipc, *image_shape)
        real = (classes, config.real_batch, *image_shape)
        shown = config.synthetic_per_step
        some = config.decoded_per_class > shown
        return cls(
            PixelState.start(torch.zeros(images, device=device), config),
            torch.zeros(real, dtype=torch.uint8, device=device),
            torch.zeros(classes, UNIFORMS, device=device),
            torch.arange(classes, device=device),
            torch.arange(shown, device=device).repeat(classes, 1) if some else None,
            torch.zeros(classes, terms, device=device),
            torch.zeros(classes, dtype=torch.bool, device=device),
            None if share is None else share.clone(),
        )


class ChunkStep:
    """Steps the first ``count`` classes of its buffers once.

    Args:
        config: resolved settings.
        method: the objective.
        embedder: holds the network of the iteration.
        buffers: inputs and outputs.
        decode: pixels ``(k, ipc, channels, H, W)`` to images ``(k, m, channels, H, W)``.
        group: classes that the method compares with each other; a chunk holds whole groups.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        method: Method,
        embedder: Embedder,
        buffers: Buffers,
        decode: Callable[[Tensor], Tensor],
        group: int = 1,
    ) -> None:
        self._config, self._method, self._group = config, method, group
        self._decode = decode
        self._embedder, self._buffers = embedder, buffers

    def __call__(self, count: int, value: bool) -> None:
        """Update the state; write ``finite``, and ``losses`` if ``value``."""
        config, buffers, rows = self._config, self._buffers, slice(count)
        state, draws, labels = buffers.state.rows(rows), buffers.draws[rows], buffers.labels[rows]
        leaf = state.pixels.detach().requires_grad_()
        with convolutions(self._embedder.device, config.precision):
            images = self._select(self._decode(leaf), rows)
            real = self._embedder.real(Views(buffers.real[rows], draws, labels))
            synthetic = self._embedder.synthetic(Views(images, draws, labels))
            losses, objective = self._compare(real, synthetic, value)
            with record_function("backward"):
                (gradient,) = torch.autograd.grad(objective, leaf)
        with record_function("update"):
            rates = config.lr_img, config.momentum, config.average
            state.step_(gradient, *rates, share=buffers.share)
            buffers.finite[rows] = gradient.isfinite().flatten(1).all(1)
            if losses is not None:
                buffers.losses[rows] = losses

    def _compare(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The method's losses, group by group if it compares classes."""
        if not self._method.grouped:
            return self._method.losses(real, synthetic, value)
        pairs = zip(real.split(self._group), synthetic.split(self._group), strict=True)
        columns, objectives = zip(
            *(self._method.losses(*pair, value) for pair in pairs), strict=True
        )
        losses = torch.cat(columns) if value else None
        return losses, torch.stack(objectives).sum()

    def _select(self, images: Tensor, rows: slice) -> Tensor:
        """The decoded images ``(k, m, ...)`` that take part in this step."""
        if self._buffers.selected is None:
            return images
        classes, count = images.shape[:2]
        first = torch.arange(0, classes * count, count, device=images.device)[:, None]
        indices = (self._buffers.selected[rows] + first).flatten()
        return images.flatten(0, 1).index_select(0, indices).unflatten(0, (classes, -1))
