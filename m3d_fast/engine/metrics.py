"""Metrics of a run: kept on the device, checked, written every few iterations."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.hardware import peak_bytes
from ..distributed import Ranks
from ..run.folder import RunFolder
from .iteration import IterationResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("m3d_fast")


class Metrics:
    """Collects results of iterations, writes ``metrics.jsonl`` and TensorBoard events.

    Args:
        run: the run folder.
        ranks: those of the job; the first one writes for all.
        class_names: for the message about a gradient that is not finite.
        terms: of the loss.
        first: iterations already done.
        images_per_step: real and synthetic images per iteration, of all ranks.
        rate: learning rate of the images in an iteration, counted from 0; None if it stays.
    """

    def __init__(
        self,
        run: RunFolder,
        ranks: Ranks,
        class_names: Sequence[str],
        *,
        terms: Sequence[str],
        first: int,
        images_per_step: int,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        self._run, self._ranks, self._class_names, self._done = run, ranks, class_names, first
        self._images_per_step, self._terms = images_per_step, tuple(terms)
        self._rate = rate
        self._pending: list[IterationResult] = []  # on the device
        self._last_loss = float("nan")
        self._clock = time.monotonic()
        # a resumed run writes the events after its checkpoint again
        self._events = _open_events(run.path / "tensorboard", first + 1) if ranks.leads else None

    def add(self, result: IterationResult) -> None:
        """Add the next iteration; does not wait for the device."""
        self._pending.append(result)

    def flush(self) -> float:
        """Write the results added since; returns the last mean loss over the classes of all ranks.

        Raises:
            UserError: if a gradient is not finite, or a write fails.
        """
        if not self._pending:
            return self._last_loss
        results, self._pending = self._pending, []
        known = [result.losses for result in results if result.losses is not None][-1:]
        own = (
            torch.stack([result.finite for result in results]).cpu(),  # (iterations, C)
            known[0].cpu().tolist() if known else [],
            sum(result.loader_seconds for result in results),
            peak_bytes(results[0].finite.device),
        )
        finite, losses, waited, memory = zip(*self._ranks.gather(own), strict=True)
        self._check_finite(torch.cat(finite, 1))
        self._done += len(results)
        values = [terms for share in losses for terms in share]  # of all classes
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        if values:
            self._last_loss = sum(means)
        with self._ranks.together():
            if self._ranks.leads:
                self._write(len(results), means, max(waited), max(memory))
        return self._last_loss

    def _write(self, iterations: int, means: Sequence[float], waited: float, memory: int) -> None:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        rate = iterations / seconds
        record = {
            "iteration": self._done,
            # of the last iteration that computed it, a mean over classes; None if none did
            "loss": sum(means) if means else None,
            "seconds": seconds,  # since the previous line; the rates below are over this time
            "images_per_second": rate * self._images_per_step,
            "loader_wait": waited / seconds,  # share of the time, on the rank that waited longest
            # peak of a device, or of a process on a CPU
            "memory_bytes": memory,
        }
        if len(self._terms) > 1:  # their sum is the loss
            for number, term in enumerate(self._terms):
                record[f"loss_{term}"] = means[number] if means else None
        if self._rate is not None:
            record["lr_img"] = self._rate(self._done - 1)
        assert self._events is not None
        with self._run.report_write_errors():
            with self._run.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            for name in record.keys() - {"iteration", "seconds"}:
                if record[name] is not None:
                    self._events.add_scalar(name, record[name], self._done)
            self._events.add_scalar("iterations_per_second", rate, self._done)

    def _check_finite(self, finite: Tensor) -> None:
        bad = (~finite).nonzero()
        if len(bad) == 0:
            return
        row, label = bad[0].tolist()
        kept = self._run.checkpoints.describe_resume_point()
        raise UserError(
            f"the gradient of class {label} ({self._class_names[label]}) became infinite or NaN "
            f"at iteration {self._done + row + 1}; {kept}; try a lower --lr-img or --precision fp32"
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: object, error: object, _trace: object) -> None:
        if self._events is None:
            return
        try:
            with self._run.report_write_errors():
                self._events.close()
        except UserError as write_error:
            if error is None:
                raise
            log.warning("%s", write_error)  # the error that ended the run is raised


def _open_events(folder: Path, purge_step: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder), purge_step=purge_step)
