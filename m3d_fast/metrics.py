"""Losses of a run: kept on the device, checked, written every few iterations."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .distributed import Ranks
from .errors import UserError
from .run import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("m3d_fast")


class Metrics:
    """Collects the classes' losses and writes ``metrics.jsonl`` and TensorBoard events.

    Args:
        run: where to.
        ranks: those of the job; the first one writes for all.
        class_names: to name the class whose loss is not finite.
        first: iterations done before.
        images_per_step: real and synthetic images per iteration, of all ranks.
    """

    def __init__(
        self,
        run: RunFolder,
        ranks: Ranks,
        class_names: Sequence[str],
        *,
        first: int,
        images_per_step: int,
    ) -> None:
        self._run, self._ranks, self._class_names, self._done = run, ranks, class_names, first
        self._images_per_step = images_per_step
        self._pending: list[Tensor] = []  # one (C,) per iteration, on the device
        self._last = float("nan")
        self._clock = time.monotonic()
        # events after a checkpoint are superseded when the run goes on from it
        self._events = _events(run.path / "tensorboard", first + 1) if ranks.leads else None

    def add(self, losses: Tensor) -> None:
        """Note the losses ``(C,)`` of the next iteration; does not wait for the device."""
        self._pending.append(losses)

    def flush(self) -> float:
        """Write what is pending; returns the last mean loss over the classes of all ranks.

        Raises:
            UserError: if a loss is not finite, or the disk refuses.
        """
        if not self._pending:
            return self._last
        own = torch.stack(self._pending).cpu()  # (iterations, C)
        self._pending.clear()
        losses = torch.cat(self._ranks.gather(own), 1)
        self._check(losses)
        self._done += len(losses)
        self._last = losses[-1].mean().item()
        self._ranks.lead(lambda: self._write(losses))
        return self._last

    def _write(self, losses: Tensor) -> None:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        rate = len(losses) / seconds
        record = {
            "iteration": self._done,
            "loss": self._last,
            "mean_loss": losses.mean().item(),  # over the iterations since the line before
            "seconds": seconds,  # likewise
            "images_per_second": rate * self._images_per_step,
        }
        assert self._events is not None
        with self._run.writable():
            with self._run.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self._events.add_scalar("loss", self._last, self._done)
            self._events.add_scalar("iterations_per_second", rate, self._done)

    def _check(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad) == 0:
            return
        row, label = bad[0].tolist()
        raise UserError(
            f"the loss of class {label} ({self._class_names[label]}) became "
            f"{losses[row, label].item()} at iteration {self._done + row + 1}; "
            f"{self._run.checkpoints.kept()}; try a lower --lr-img or --precision fp32"
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._events is None:
            return
        try:
            with self._run.writable():
                self._events.close()
        except UserError as unwritten:
            if error is None:
                raise
            log.warning("%s", unwritten)  # something else ended the run before


def _events(folder: Path, purge_step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), purge_step=purge_step)
