"""A run's state on disk: shards of classes, of which a complete set exists at every instant.

A shard holds what changes in a run, for a range of its classes: pixels, momentum and how far each
class has been drawn. Networks and augmentation are functions of seed and iteration, so there is
nothing else to keep. A shard of all classes is ``checkpoint.safetensors``, replaced atomically;
others carry iteration and range in their names, and go when a newer set is complete.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.hardware import free_bytes
from ..common.tensors import read_metadata, read_tensors, write_tensors

log = logging.getLogger("m3d_fast")

CHECKPOINT_FORMAT = "m3d_fast checkpoint"
SAMPLER = "sampler."  # names of what is kept for every class of the data set

# without --checkpoint-every: at least so many seconds apart, and at most this share of the time
SECONDS_APART, SHARE_OF_TIME = 30.0, 0.01


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint: the state of ``classes``, of ``total``, after ``iteration``."""

    path: Path
    iteration: int
    classes: range
    total: int


class Checkpoints:
    """The checkpoint files of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, iteration: int, classes: range, total: int) -> Path:
        """Where the shard of ``classes`` goes."""
        if len(classes) == total:
            return self.folder / "checkpoint.safetensors"
        name = f"checkpoint-{iteration:07d}-classes-{classes.start:04d}-{classes.stop:04d}"
        return self.folder / f"{name}.safetensors"

    def save(self, state: Mapping[str, Tensor], iteration: int, classes: range, total: int) -> None:
        """Write the shard of ``classes``.

        Args:
            state: one row per class of ``classes``; of the sampler, one per class of the data set.
            iteration: steps behind the state.
            classes: those of this shard.
            total: classes of the data set.

        Raises:
            UserError: if the disk refuses; shards written before stay as they are.
        """
        rows = {
            name: tensor[classes.start : classes.stop] if name.startswith(SAMPLER) else tensor
            for name, tensor in state.items()
        }
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "iteration": iteration,
            "classes": [classes.start, classes.stop],
            "total": total,
        }
        try:
            write_tensors(self.path(iteration, classes, total), rows, metadata)
        except UserError as error:
            raise UserError(f"{error}; {self.kept()}") from error

    def newest(self) -> list[Shard]:
        """The shards of the newest complete checkpoint, by class; none before the first.

        Raises:
            UserError: if a file is damaged or not a checkpoint.
        """
        shards = [_shard(path) for path in sorted(self.folder.glob("checkpoint*.safetensors"))]
        for iteration in sorted({shard.iteration for shard in shards}, reverse=True):
            complete = _tiling([shard for shard in shards if shard.iteration == iteration])
            if complete:
                return complete
        return []

    def iteration(self) -> int | None:
        """Steps behind the newest complete checkpoint; None before the first."""
        shards = self.newest()
        return shards[0].iteration if shards else None

    def kept(self) -> str:
        """What a run that ends now can go on from, in words."""
        iteration = self.iteration()
        if iteration is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of iteration {iteration} is kept, go on from it with --resume"

    def load(self, classes: range) -> tuple[dict[str, Tensor], int] | None:
        """State of ``classes``, as :meth:`save` takes it, and its iteration; None before the first.

        It does not matter how the classes were sharded when it was saved.

        Raises:
            UserError: if a file is damaged or not a checkpoint.
        """
        found: dict[str, list[Tensor]] = {}
        shards = self.newest()
        for shard in shards:
            tensors, _ = read_tensors(shard.path, CHECKPOINT_FORMAT)
            first, stop = (max(0, c - shard.classes.start) for c in (classes.start, classes.stop))
            for name, tensor in tensors.items():
                rows = tensor if name.startswith(SAMPLER) else tensor[first:stop]
                found.setdefault(name, []).append(rows)
        if not shards:
            return None
        return {name: _joined(parts) for name, parts in found.items()}, shards[0].iteration

    def pixels(self) -> list[Tensor]:
        """Pixels of the newest complete checkpoint, shard by shard: views of the mapped files."""
        return [read_tensors(shard.path, CHECKPOINT_FORMAT)[0]["pixels"] for shard in self.newest()]

    def tidy(self) -> None:
        """Remove everything but the newest complete checkpoint; no shard may be in writing."""
        kept = {shard.path for shard in self.newest()}
        for pattern in ("checkpoint*.safetensors", ".checkpoint*.safetensors.part"):
            for path in self.folder.glob(pattern):
                if path not in kept:
                    path.unlink()


class CheckpointWriter:
    """Saves the shard of this process in the background.

    Args:
        checkpoints: where to.
        classes: those of this process.
        total: classes of the data set.
        every: iterations between checkpoints; None for as often as costs 1 % of the time.
    """

    def __init__(
        self, checkpoints: Checkpoints, classes: range, total: int, every: int | None
    ) -> None:
        self._checkpoints, self._classes, self._total = checkpoints, classes, total
        self.every = every
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[float] | None = None
        self._host: dict[str, Tensor] | None = None
        self._last = time.monotonic()
        self.cost = 0.0  # seconds the last one kept the loop waiting, or a core busy

    def is_time(self) -> bool:
        """Whether a checkpoint now would cost little enough, and nothing is in writing.

        Raises:
            UserError: if the last checkpoint could not be written.
        """
        if self._busy():
            return False
        apart = max(SECONDS_APART, self.cost / SHARE_OF_TIME)
        return time.monotonic() - self._last >= apart

    def save(self, state: Mapping[str, Tensor], iteration: int) -> None:
        """Take a copy of the state and go on writing it while the run goes on.

        Raises:
            UserError: if this or the last checkpoint could not be written.
        """
        start = time.monotonic()
        self.wait()
        where = iteration, self._classes, self._total
        if self._fits(state):
            copy = self._copy(state)
            self._writing = self._thread.submit(self._write, copy, *where)
        else:
            self._checkpoints.save(state, *where)
        self._last = time.monotonic()
        self.cost = self._last - start

    def wait(self) -> None:
        """Return when nothing is in writing.

        Raises:
            UserError: if the last checkpoint could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.cost += writing.result()

    def _write(self, state: Mapping[str, Tensor], *where: Any) -> float:
        """Write a copy of the state; returns the seconds of a core it took."""
        start = time.thread_time()
        self._checkpoints.save(state, *where)
        return time.thread_time() - start

    def _busy(self) -> bool:
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def _fits(self, state: Mapping[str, Tensor]) -> bool:
        if self._host is not None:
            return bool(self._host)
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        free = free_bytes(torch.device("cpu"))
        if size <= 0.8 * free:
            pinned = any(tensor.is_cuda for tensor in state.values())
            self._host = {
                name: torch.empty_like(tensor, device="cpu", pin_memory=pinned)
                for name, tensor in state.items()
            }
            return True
        self._host = {}
        log.info(
            "checkpoints hold up the run while they are written: a copy of the state takes "
            "%.1f GB, %.1f GB of host memory are free",
            size / 1e9,
            free / 1e9,
        )
        return False

    def _copy(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self._host is not None
        for name, tensor in state.items():
            self._host[name].copy_(tensor)
        return self._host

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: object, error: object, _trace: object) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except UserError as unwritten:
            if error is None:
                raise
            log.warning("%s", unwritten)  # something else ended the run before


def _shard(path: Path) -> Shard:
    metadata = read_metadata(path, CHECKPOINT_FORMAT)
    if not {"iteration", "classes", "total"} <= metadata.keys():
        raise UserError(f"{path}: expected a {CHECKPOINT_FORMAT} of this version, found another")
    return Shard(path, metadata["iteration"], range(*metadata["classes"]), metadata["total"])


def _tiling(shards: Iterable[Shard]) -> list[Shard]:
    """Those of ``shards`` that follow each other from the first class to the last, or none."""
    starts = {shard.classes.start: shard for shard in sorted(shards, key=lambda s: s.classes.stop)}
    found: list[Shard] = []
    stop, total = 0, None
    while stop != total:
        shard = starts.get(stop)
        if shard is None or not shard.classes:
            return []
        found.append(shard)
        stop, total = shard.classes.stop, shard.total
    return found


def _joined(parts: Sequence[Tensor]) -> Tensor:
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else torch.cat(filled or list(parts))
