"""What a run goes through: kept on the device, checked, written every few iterations."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.errors import UserError
from ..distributed import Ranks
from ..run.folder import RunFolder
from .condenser import Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("m3d_fast")


class Metrics:
    """Collects what iterations leave behind and writes ``metrics.jsonl`` and TensorBoard events.

    Args:
        run: where to.
        ranks: those of the job; the first one writes for all.
        class_names: to name the class whose gradient is not finite.
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
        self._pending: list[Step] = []  # one per iteration, on the device
        self._last = float("nan")
        self._clock = time.monotonic()
        # events after a checkpoint are superseded when the run goes on from it
        self._events = _events(run.path / "tensorboard", first + 1) if ranks.leads else None

    def add(self, step: Step) -> None:
        """Note the next iteration; does not wait for the device."""
        self._pending.append(step)

    def flush(self) -> float:
        """Write what is pending; returns the last mean loss over the classes of all ranks.

        Raises:
            UserError: if a gradient is not finite, or the disk refuses.
        """
        if not self._pending:
            return self._last
        steps, self._pending = self._pending, []
        known = [step.losses for step in steps if step.losses is not None][-1:]
        own = (
            torch.stack([step.finite for step in steps]).cpu(),  # (iterations, C)
            known[0].cpu().tolist() if known else [],
            sum(step.loader_seconds for step in steps),
        )
        finite, losses, waited = zip(*self._ranks.gather(own), strict=True)
        self._check(torch.cat(finite, 1))
        self._done += len(steps)
        values = [loss for share in losses for loss in share]
        if values:
            self._last = sum(values) / len(values)
        shown = self._last if values else None
        self._ranks.lead(lambda: self._write(len(steps), shown, max(waited)))
        return self._last

    def _write(self, iterations: int, loss: float | None, waited: float) -> None:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        rate = iterations / seconds
        record = {
            "iteration": self._done,
            "loss": loss,  # of the last iteration whose value was wanted; None if none was
            "seconds": seconds,  # since the line before, as what follows
            "images_per_second": rate * self._images_per_step,
            "loader_wait": waited / seconds,  # share of the time, of the rank that waited most
        }
        assert self._events is not None
        with self._run.writable():
            with self._run.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            for name in ("loss", "images_per_second", "loader_wait"):
                if record[name] is not None:
                    self._events.add_scalar(name, record[name], self._done)
            self._events.add_scalar("iterations_per_second", rate, self._done)

    def _check(self, finite: Tensor) -> None:
        bad = (~finite).nonzero()
        if len(bad) == 0:
            return
        row, label = bad[0].tolist()
        raise UserError(
            f"the gradient of class {label} ({self._class_names[label]}) became infinite or NaN "
            f"at iteration {self._done + row + 1}; "
            f"{self._run.checkpoints.kept()}; try a lower --lr-img or --precision fp32"
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: object, error: object, _trace: object) -> None:
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
