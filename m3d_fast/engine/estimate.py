"""Does a run fit, and how long will it take? Known before its first iteration or soon after."""

import logging
import shutil
import time

import torch

from ..common.errors import UserError
from ..common.hardware import free_bytes, peak_bytes
from ..common.processes import processes_on_machine
from ..config import ResolvedConfig
from ..distributed import Ranks
from ..loaders import RealImages, dataset_info
from ..run.folder import RunFolder
from .iteration import Iterated, IterationResult
from .pixel_store import fits_on_device, state_bytes
from .sources.registry import network_state_bytes

log = logging.getLogger("m3d_fast")

WARM_UP, MEASURED = 2, 3  # iterations: the first ones compile and capture
QUIET_SECONDS = 600  # shorter runs of small sets print no estimate
MANY_CLASSES = 100  # from here on, and for image files, the estimate precedes the first iteration
WAITING = 0.05  # share of the time from which waiting for the loader deserves a hint


def refuse_what_cannot_fit(
    run: RunFolder, config: ResolvedConfig, real: RealImages, classes: range
) -> None:
    """Refuse, before any work, a run whose state does not fit its disk or its memory.

    Args:
        run: its folder, which need not exist.
        config: resolved settings.
        real: the training images.
        classes: those of this rank.

    Raises:
        UserError: with the required and the free bytes.
    """
    required, free = required_disk_bytes(config, real), free_disk_bytes(run)
    if required > free:
        raise UserError(
            f"run folder {run.path}: {_gb(required)} are needed, for a checkpoint and the next one "
            f"while it is written, {_gb(free)} are free; give an --out on a larger disk"
        )
    state = state_bytes(config, len(classes), real.image_shape)
    required = state * processes_on_machine()
    free = free_bytes(torch.device("cpu"))
    device = torch.device(config.device)
    # on a GPU they live in host memory if they leave too little of its own to the chunks
    on_host = device.type == "cpu" or not fits_on_device(state, free_bytes(device))
    if on_host and required > free:
        raise UserError(
            f"pixels and momentum take {_gb(required)} of memory, {_gb(free)} are free; give a "
            f"smaller --ipc or --size, or share the classes among machines with torchrun"
        )


def required_disk_bytes(config: ResolvedConfig, real: RealImages) -> int:
    """Peak of a run's bytes on disk: a checkpoint, and the next one while it is written.

    The condensed set, at most half a checkpoint, is written when only one checkpoint is left.
    """
    pixels = state_bytes(config, real.num_classes, real.image_shape)
    return 2 * (pixels + network_state_bytes(config, real))


def free_disk_bytes(run: RunFolder) -> int:
    """Bytes on disk available to the run: the free ones and those of its own files."""
    existing = next(p for p in (run.path, *run.path.absolute().parents) if p.exists())
    own = sum(path.stat().st_size for path in run.path.glob("*.safetensors"))
    return shutil.disk_usage(existing).free + own


class RunEstimate:
    """Logs time, memory and disk of a run: of a big set at its start, of a long run soon after.

    Args:
        condenser: of this rank.
        run: the run folder.
        ranks: those of the job.
        first: iterations already done.
    """

    def __init__(self, condenser: Iterated, run: RunFolder, ranks: Ranks, first: int) -> None:
        self._condenser, self._run, self._ranks = condenser, run, ranks
        self._first, self._start = first, first + WARM_UP
        self._stop = self._start + MEASURED
        self._clock = self._waited = 0.0

    def announce(self) -> None:
        """Log memory, disk, images/s and hours of a big set, before its first iteration.

        They are measured in a warm-up on black images, which does not change the run.
        """
        config, real = self._condenser.config, self._condenser.real
        big = dataset_info(config.dataset).kind == "imagenet" or real.num_classes >= MANY_CLASSES
        if not big or config.iterations == self._first:
            return
        measured = (self._condenser.seconds_per_iteration(), peak_bytes(self._condenser.device))
        everywhere = zip(*self._ranks.gather(measured), strict=True)
        seconds, memory = (max(column) for column in everywhere)
        left = self._count_left(self._first, seconds)
        needed = real.num_classes * config.real_batch / seconds
        log.info("%s", self._describe_space(memory))
        log.info("%s, %.0f real images/s needed", self._describe_time(seconds, left), needed)

    def observe(self, done: int, result: IterationResult) -> None:
        """Measure the iteration just done, waiting for the device twice in a run, and log."""
        if self._start < done <= self._stop:
            self._waited += result.loader_seconds
        if done not in (self._start, self._stop):
            return
        result.finite.cpu()
        now = time.perf_counter()
        if done == self._start:
            self._clock = now
            return
        measured = (now - self._clock, self._waited, peak_bytes(self._condenser.device))
        everywhere = zip(*self._ranks.gather(measured), strict=True)
        seconds, waited, memory = (max(column) for column in everywhere)
        left = self._count_left(done, seconds / MEASURED)
        if seconds / MEASURED * left > QUIET_SECONDS:
            for line in self._describe(seconds / MEASURED, waited / seconds, memory, left):
                log.info("%s", line)

    def _count_left(self, done: int, seconds: float) -> int:
        """Iterations still to take, of this many seconds each, at most."""
        config = self._condenser.config
        left = config.iterations - done
        return left if config.budget is None else min(left, int(config.budget / seconds))

    def _describe(self, seconds: float, waiting: float, memory: int, left: int) -> list[str]:
        config, real = self._condenser.config, self._condenser.real
        images = real.num_classes * config.real_batch
        needed = images / (seconds * max(1 - waiting, 1e-3))
        hint = "; more --workers or --cache host would help" if waiting > WAITING else ""
        return [
            self._describe_time(seconds, left),
            f"estimate: {needed:,.0f} real images/s needed, {images / seconds:,.0f} delivered, "
            f"{100 * waiting:.0f} % of the time spent waiting for them{hint}",
            self._describe_space(memory),
        ]

    def _describe_time(self, seconds: float, left: int) -> str:
        duration = _format_duration(seconds * left)
        return f"estimate: {duration} for {left:,} iterations of {seconds:.3g} s"

    def _describe_space(self, memory: int) -> str:
        required = required_disk_bytes(self._condenser.config, self._condenser.real)
        return (
            f"estimate: {_gb(memory)} of memory per device, {_gb(required)} of disk "
            f"({_gb(free_disk_bytes(self._run))} free)"
        )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _format_duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
