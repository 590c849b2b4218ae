"""Does a run fit, and how long will it take? Said before its first iteration, not after a day."""

import logging
import math
import resource
import shutil
import sys
import time

import torch

from ..common.errors import UserError
from ..common.hardware import free_bytes
from ..common.processes import processes_on_machine
from ..config import ResolvedConfig
from ..distributed import Ranks
from ..loaders import RealImages, dataset_info
from ..run.folder import RunFolder
from .condenser import Condenser, Step
from .pixel_store import fits_beside_a_chunk

log = logging.getLogger("m3d_fast")

WARM_UP, MEASURED = 2, 3  # iterations: the first ones compile and capture
QUIET_SECONDS = 600  # shorter runs of small sets need no plan
MANY_CLASSES = 100  # from here on, and for image files, it is said before the first iteration
WAITING = 0.05  # share of the time from which waiting for the loader is worth a word


def refuse_what_cannot_fit(
    run: RunFolder, config: ResolvedConfig, real: RealImages, classes: range
) -> None:
    """Refuse a run whose state fits neither its disk nor its memory, before any work.

    Args:
        run: its folder, which need not exist.
        config: resolved settings.
        real: the training images.
        classes: those of this rank.

    Raises:
        UserError: saying what is needed and what there is.
    """
    needed, free = disk_needed(config, real), disk_free(run)
    if needed > free:
        raise UserError(
            f"run folder {run.path}: {_gb(needed)} are needed, a checkpoint while the next one is "
            f"written, {_gb(free)} are free; give an --out on a larger disk"
        )
    local = processes_on_machine()
    held = _state_bytes(config, real, len(classes))
    room = free_bytes(torch.device("cpu"))
    device = torch.device(config.device)
    # a GPU keeps them only where they leave room to a chunk
    on_host = device.type == "cpu" or not fits_beside_a_chunk(held // 2, free_bytes(device))
    if on_host and held * local > room:
        raise UserError(
            f"pixels and momentum take {_gb(held * local)} of memory, {_gb(room)} are free; take a "
            f"smaller --ipc or --size, or share the classes among machines with torchrun"
        )


def disk_needed(config: ResolvedConfig, real: RealImages) -> int:
    """Bytes a run takes on disk at its height: a checkpoint, and the next one in writing.

    The condensed set, half a checkpoint, is written when only one checkpoint is left.
    """
    return 2 * _state_bytes(config, real, real.num_classes)


def disk_free(run: RunFolder) -> int:
    """Bytes the run may still take: what is free, and what its own files hold already."""
    existing = next(p for p in (run.path, *run.path.absolute().parents) if p.exists())
    own = sum(path.stat().st_size for path in run.path.glob("*.safetensors"))
    return shutil.disk_usage(existing).free + own


class Plan:
    """Says what a run takes: of a big set before it starts, of a long run from its first steps.

    Args:
        condenser: of this rank.
        run: the run folder.
        ranks: those of the job.
        first: iterations done before.
    """

    def __init__(self, condenser: Condenser, run: RunFolder, ranks: Ranks, first: int) -> None:
        self._condenser, self._run, self._ranks = condenser, run, ranks
        self._first, self._start = first, first + WARM_UP
        self._stop = self._start + MEASURED
        self._clock = self._waited = 0.0

    def announce(self) -> None:
        """Before the first iteration of a big set: memory, disk, images/s and hours it will take.

        They come from a warm-up on black images, which leaves no trace in the run.
        """
        config, real = self._condenser.config, self._condenser.real
        left = config.iterations - self._first
        big = dataset_info(config.dataset).kind == "imagenet" or real.num_classes >= MANY_CLASSES
        if not big or not left:
            return
        measured = (self._condenser.seconds_per_iteration(), self._peak_memory())
        everywhere = zip(*self._ranks.gather(measured), strict=True)
        seconds, memory = (max(column) for column in everywhere)
        needed = real.num_classes * config.real_batch / seconds
        log.info("%s", self._space(memory))
        log.info("%s, %.0f real images/s needed", self._time(seconds, left), needed)

    def observe(self, done: int, step: Step) -> None:
        """Take note of an iteration; the device is waited for twice in a run."""
        if self._start < done <= self._stop:
            self._waited += step.loader_seconds
        if done not in (self._start, self._stop):
            return
        step.finite.cpu()
        now = time.perf_counter()
        if done == self._start:
            self._clock = now
            return
        measured = (now - self._clock, self._waited, self._peak_memory())
        everywhere = zip(*self._ranks.gather(measured), strict=True)
        seconds, waited, memory = (max(column) for column in everywhere)
        left = self._condenser.config.iterations - done
        if seconds / MEASURED * left > QUIET_SECONDS:
            for line in self._lines(seconds / MEASURED, waited / seconds, memory, left):
                log.info("%s", line)

    def _lines(self, seconds: float, waiting: float, memory: int, left: int) -> list[str]:
        config, real = self._condenser.config, self._condenser.real
        images = real.num_classes * config.real_batch
        needed = images / (seconds * max(1 - waiting, 1e-3))
        hint = "; more --workers or --cache host would help" if waiting > WAITING else ""
        return [
            self._time(seconds, left),
            f"plan: {needed:,.0f} real images/s needed, {images / seconds:,.0f} delivered, "
            f"{100 * waiting:.0f} % of the time spent waiting for them{hint}",
            self._space(memory),
        ]

    def _time(self, seconds: float, left: int) -> str:
        return f"plan: {_duration(seconds * left)} for {left:,} iterations of {seconds:.3g} s"

    def _space(self, memory: int) -> str:
        needed = disk_needed(self._condenser.config, self._condenser.real)
        return (
            f"plan: {_gb(memory)} of memory per device, {_gb(needed)} of disk "
            f"({_gb(disk_free(self._run))} free)"
        )

    def _peak_memory(self) -> int:
        device = self._condenser.device
        if device.type == "cuda":
            return torch.cuda.max_memory_reserved(device)
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _state_bytes(config: ResolvedConfig, real: RealImages, classes: int) -> int:
    """Pixels and momentum, float32."""
    return 2 * 4 * classes * config.ipc * math.prod(real.image_shape)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
