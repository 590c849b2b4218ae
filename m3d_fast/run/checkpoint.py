"""A run's state on disk: shards of classes, of which a complete set exists at every instant.

A shard holds the state of a range of classes: pixels, momentum and the position in each class's
order of images. Augmentation is a function of seed and iteration, and so are networks that the run
does not train; those it trains, the same on all ranks, are in the shard of the first class. A shard
of all classes is ``checkpoint.safetensors``, replaced atomically; others carry iteration and range
in their names, and are removed when a newer set is complete.
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
from ..common.pinned import empty_pinned
from ..common.tensors import read_metadata, read_tensors, write_tensors

log = logging.getLogger("m3d_fast")

CHECKPOINT_FORMAT = "m3d_fast checkpoint"
# prefixes of tensors with a row for every class of the data set, and of networks, without such rows
SAMPLER, NETWORKS = "sampler.", "networks."

# without --checkpoint-every: seconds between checkpoints, at least, and share of time, at most
SECONDS_APART, SHARE_OF_TIME = 30.0, 0.01


def select_by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def check_shapes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise UserError unless a checkpoint's ``tensors`` are shaped as those of the run."""
    read, needed = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        for state in (tensors, own)
    )
    if read != needed:
        raise UserError("the checkpoint holds tensors of other shapes than this run's")


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

    def shard_path(self, iteration: int, classes: range, total: int) -> Path:
        """File of the shard of ``classes``."""
        if len(classes) == total:
            return self.folder / "checkpoint.safetensors"
        name = f"checkpoint-{iteration:07d}-classes-{classes.start:04d}-{classes.stop:04d}"
        return self.folder / f"{name}.safetensors"

    def save(self, state: Mapping[str, Tensor], iteration: int, classes: range, total: int) -> None:
        """Write the shard of ``classes``.

        Args:
            state: one row per class of ``classes``; in the sampler's tensors, per class of the set;
                those of networks, the same on all ranks, are written by that of the first class.
            iteration: number of iterations done.
            classes: those of this shard.
            total: classes of the data set.

        Raises:
            UserError: if a write fails; earlier shards are kept.
        """
        rows = {
            name: tensor[classes.start : classes.stop] if name.startswith(SAMPLER) else tensor
            for name, tensor in state.items()
            if classes.start == 0 or not name.startswith(NETWORKS)
        }
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "iteration": iteration,
            "classes": [classes.start, classes.stop],
            "total": total,
        }
        try:
            write_tensors(self.shard_path(iteration, classes, total), rows, metadata)
        except UserError as error:
            raise UserError(f"{error}; {self.describe_resume_point()}") from error

    def find_newest(self) -> list[Shard]:
        """The shards of the newest complete checkpoint, by class; none before the first.

        Raises:
            UserError: if a file is damaged or not a checkpoint.
        """
        shards = [_read_shard(path) for path in sorted(self.folder.glob("checkpoint*.safetensors"))]
        for iteration in sorted({shard.iteration for shard in shards}, reverse=True):
            complete = _find_complete_set(
                [shard for shard in shards if shard.iteration == iteration]
            )
            if complete:
                return complete
        return []

    def newest_iteration(self) -> int | None:
        """Iterations done in the newest complete checkpoint; None before the first."""
        shards = self.find_newest()
        return shards[0].iteration if shards else None

    def describe_resume_point(self) -> str:
        """The checkpoint that a run which ends now can resume from, in words."""
        iteration = self.newest_iteration()
        if iteration is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of iteration {iteration} is kept, resume from it with --resume"

    def load(self, classes: range) -> tuple[dict[str, Tensor], int] | None:
        """State of ``classes``, as given to :meth:`save`, and its iteration; None before the first.

        The classes may have been sharded in any other way when it was saved.

        Raises:
            UserError: if a file is damaged or not a checkpoint.
        """
        parts: dict[str, list[Tensor]] = {}
        shards = self.find_newest()
        for shard in shards:
            tensors, _ = read_tensors(shard.path, CHECKPOINT_FORMAT)
            first, stop = (max(0, c - shard.classes.start) for c in (classes.start, classes.stop))
            for name, tensor in tensors.items():
                whole = name.startswith((SAMPLER, NETWORKS))
                rows = tensor if whole else tensor[first:stop]
                parts.setdefault(name, []).append(rows)
        if not shards:
            return None
        return {name: _join_rows(rows) for name, rows in parts.items()}, shards[0].iteration

    def read_pixels(self) -> list[Tensor]:
        """Images of the newest complete checkpoint, shard by shard: views of the mapped files.

        The average over the steps, if the run keeps it, else the last iterate.
        """
        shards = (read_tensors(shard.path, CHECKPOINT_FORMAT)[0] for shard in self.find_newest())
        return [tensors.get("average", tensors["pixels"]) for tensors in shards]

    def remove_old(self) -> None:
        """Remove all but the newest complete checkpoint; no shard may be being written."""
        kept = {shard.path for shard in self.find_newest()}
        for pattern in ("checkpoint*.safetensors", ".checkpoint*.safetensors.part"):
            for path in self.folder.glob(pattern):
                if path not in kept:
                    path.unlink()


class CheckpointWriter:
    """Writes the shard of this process in the background.

    Args:
        checkpoints: those of the run folder.
        classes: those of this process.
        total: classes of the data set.
        every: iterations between checkpoints; None to spend at most 1 % of the time on them.
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
        self.cost = 0.0  # seconds of the loop and of a core that the last one took

    def is_due(self) -> bool:
        """Whether a checkpoint now would be cheap enough, and none is being written.

        Raises:
            UserError: if the last checkpoint could not be written.
        """
        if self._is_writing():
            return False
        interval = max(SECONDS_APART, self.cost / SHARE_OF_TIME)
        return time.monotonic() - self._last >= interval

    def save(self, state: Mapping[str, Tensor], iteration: int) -> None:
        """Copy the state and write the copy in the background, while the run continues.

        Raises:
            UserError: if this or the last checkpoint could not be written.
        """
        start = time.monotonic()
        self.wait()
        shard = iteration, self._classes, self._total
        copy = self._copy_to_host(state)
        if copy:
            self._writing = self._thread.submit(self._write, copy, *shard)
        else:
            self._checkpoints.save(state, *shard)
        self._last = time.monotonic()
        self.cost = self._last - start

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            UserError: if it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.cost += writing.result()

    def _write(self, state: Mapping[str, Tensor], *shard: Any) -> float:
        """Write a copy of the state; returns the seconds of a core it took."""
        start = time.thread_time()
        self._checkpoints.save(state, *shard)
        return time.thread_time() - start

    def _is_writing(self) -> bool:
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is not None

    def _copy_to_host(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the state into host memory, allocated once; empty if too little is free."""
        if self._host is None:
            self._host = self._allocate(state)
        for name, tensor in self._host.items():
            tensor.copy_(state[name])
        return self._host

    def _allocate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        free = free_bytes(torch.device("cpu"))
        if size > 0.8 * free:
            log.info(
                "the run waits while checkpoints are written: a copy of the state takes %.1f GB, "
                "%.1f GB of host memory are free",
                size / 1e9,
                free / 1e9,
            )
            return {}
        pinned = any(tensor.is_cuda for tensor in state.values())
        return {
            name: empty_pinned(tensor.shape, dtype=tensor.dtype)
            if pinned
            else torch.empty_like(tensor, device="cpu")
            for name, tensor in state.items()
        }

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: object, error: object, _trace: object) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except UserError as write_error:
            if error is None:
                raise
            log.warning("%s", write_error)  # the error that ended the run is raised


def _read_shard(path: Path) -> Shard:
    metadata = read_metadata(path, CHECKPOINT_FORMAT)
    if not {"iteration", "classes", "total"} <= metadata.keys():
        raise UserError(f"{path}: expected a {CHECKPOINT_FORMAT} of this version, found another")
    return Shard(path, metadata["iteration"], range(*metadata["classes"]), metadata["total"])


def _find_complete_set(shards: Iterable[Shard]) -> list[Shard]:
    """Shards that together cover every class once, in the order of classes; none if some lack."""
    starts = {shard.classes.start: shard for shard in sorted(shards, key=lambda s: s.classes.stop)}
    complete: list[Shard] = []
    stop, total = 0, None
    while stop != total:
        shard = starts.get(stop)
        if shard is None or not shard.classes:
            return []
        complete.append(shard)
        stop, total = shard.classes.stop, shard.total
    return complete


def _join_rows(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else torch.cat(filled or list(parts))
