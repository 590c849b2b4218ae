"""Losses of a run: kept on the device, checked, written every few iterations."""

import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import UserError
from .run import RunFolder


class Metrics:
    """Collects the classes' losses and writes ``metrics.jsonl`` and TensorBoard events.

    Args:
        run: where to.
        class_names: to name the class whose loss is not finite.
        first: iterations done before.
    """

    def __init__(self, run: RunFolder, class_names: Sequence[str], first: int) -> None:
        self._run, self._class_names, self._done = run, class_names, first
        self._pending: list[Tensor] = []  # one (C,) per iteration, on the device
        self._last = float("nan")
        self._clock = time.monotonic()
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        # events after a checkpoint are superseded when the run goes on from it
        self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=first + 1)

    def add(self, losses: Tensor) -> None:
        """Note the losses ``(C,)`` of the next iteration; does not wait for the device."""
        self._pending.append(losses)

    def flush(self) -> float:
        """Write what is pending; returns the last mean loss over classes.

        Raises:
            UserError: if a loss is not finite.
        """
        if not self._pending:
            return self._last
        losses = torch.stack(self._pending).cpu()  # (iterations, C)
        self._check(losses)
        self._pending.clear()
        self._done += len(losses)
        now = time.monotonic()
        self._last = losses[-1].mean().item()
        seconds = now - self._clock
        record = {
            "iteration": self._done,
            "loss": self._last,
            "mean_loss": losses.mean().item(),  # over the iterations since the line before
            "seconds": seconds,  # likewise
        }
        self._clock = now
        with self._run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._events.add_scalar("loss", self._last, self._done)
        self._events.add_scalar("iterations_per_second", len(losses) / seconds, self._done)
        return self._last

    def _check(self, losses: Tensor) -> None:
        bad = (~losses.isfinite()).nonzero()
        if len(bad) == 0:
            return
        row, label = bad[0].tolist()
        kept = self._run.load_checkpoint()
        saved = f"the checkpoint of iteration {kept[1]} is kept" if kept else "no checkpoint yet"
        raise UserError(
            f"the loss of class {label} ({self._class_names[label]}) became "
            f"{losses[row, label].item()} at iteration {self._done + row + 1}; {saved}; "
            f"try a lower --lr-img or --precision fp32"
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *error: object) -> None:
        self._events.close()
