"""The condensation loop: a run from its first iteration, or its checkpoint, to its files."""

import logging
import time
from dataclasses import replace

from ..common.errors import UserError
from ..common.hardware import use_device
from ..common.progress import Progress
from ..common.seeds import derive_seed
from ..common.signals import Interrupted, stop_signals
from ..config import CondenseConfig, ResolvedConfig
from ..distributed import Ranks, join_ranks
from ..loaders import RealImages, dataset_info
from ..run.checkpoint import CheckpointWriter
from ..run.condensed import write_condensed_set, write_result
from ..run.folder import RunFolder, resolve_resumed_config
from ..synthetic import SyntheticSet
from .condenser import Condenser
from .estimate import RunEstimate, refuse_what_cannot_fit
from .iteration import Iterated
from .metrics import Metrics
from .profiling import profile_iterations
from .sources.registry import TRAINED_ON_REAL_IMAGES, prepare_source
from .unrolled.condenser import UnrolledCondenser

log = logging.getLogger("m3d_fast")


def condense(config: CondenseConfig, *, resume: bool = False) -> SyntheticSet:
    """Condense by steps, as :func:`m3d_fast.construction.condense` does for methods with steps."""
    with join_ranks() as ranks:
        with ranks.together():
            settings = resolve_resumed_config(config, resume=resume).resolve()
            settings.check_ranks(ranks.size)
            run = RunFolder(settings.out)
            if ranks.leads:
                run.check(settings, resume=resume)
            local = replace(settings, device=ranks.select_device(settings.device))
        with use_device(local.device), run.lock:
            real = ranks.leader_first(lambda: open_training_images(local, ranks))
            with ranks.together():
                classes = select_classes(local, ranks, real.num_classes)
                refuse_what_cannot_fit(run, local, real, classes)
            ranks.leader_first(lambda: prepare_source(local, real))
            with ranks.together():  # after every rank has checked the memory that they share
                condenser = build_condenser(local, real, classes)
            with ranks.together():
                if ranks.leads:
                    run.start(settings, resume=resume, pretraining=condenser.pretraining_seconds)
            with ranks.together():
                run.lock.share()
            Condensation(condenser, run, ranks).run()
    return SyntheticSet.load(run.synthetic_file)


def open_training_images(config: ResolvedConfig, ranks: Ranks) -> RealImages:
    """Open the training images; if possible, those of this rank's classes alone."""
    known = dataset_info(config.dataset).num_classes
    if config.networks_from in TRAINED_ON_REAL_IMAGES:
        known = None
    real = config.open_images(
        device=config.device,
        seed=derive_seed(config.seed, "sampling"),
        classes=None if known is None else select_classes(config, ranks, known),
    )
    check_class_sizes(config, real)
    return real


def select_classes(config: ResolvedConfig, ranks: Ranks, num_classes: int) -> range:
    """The classes of this rank, in whole groups where the method compares them."""
    return ranks.select_classes(num_classes, config.count_in_group(num_classes))


def check_class_sizes(config: ResolvedConfig, real: RealImages) -> None:
    """Raise UserError if a class has fewer images than ``config.ipc``."""
    smallest = min(real.class_sizes)
    if config.ipc > smallest:
        raise UserError(
            f"ipc: expected at most the {smallest} images of the smallest class, got {config.ipc}"
        )


def build_condenser(config: ResolvedConfig, real: RealImages, classes: range) -> Iterated:
    """What steps ``classes``: through the training of networks, or through what they read."""
    if config.unrolls:
        return UnrolledCondenser(config, real)
    return Condenser(config, real, classes)


class Condensation:
    """A run in its folder, from the first iteration or its checkpoint to the condensed set.

    Args:
        condenser: of this rank's classes.
        run: the run folder, locked.
        ranks: those of the job.
    """

    def __init__(self, condenser: Iterated, run: RunFolder, ranks: Ranks) -> None:
        self._condenser, self._run, self._ranks = condenser, run, ranks
        self._config, real = condenser.config, condenser.real
        self._first = self._restore()
        self._spent = run.condensation_seconds()
        if self._config.budget is not None and self._spent < self._config.budget:
            condenser.seconds_per_iteration()  # compiles and captures before the time is counted
        self._images = sum(ranks.gather(condenser.images_per_step))
        self._metrics = Metrics(
            run,
            ranks,
            real.class_names,
            terms=condenser.method.terms,
            first=self._first,
            images_per_step=self._images,
            rate=self._find_rate if self._config.changes_rate else None,
        )
        self._clock = time.monotonic()
        self._estimate = RunEstimate(condenser, run, ranks, self._first)
        self._writer = CheckpointWriter(
            run.checkpoints, condenser.classes, real.num_classes, self._config.checkpoint_every
        )

    def run(self) -> None:
        """Take the remaining iterations and write the condensed set; errors as :func:`condense`."""
        config, ranks = self._config, self._ranks
        # a run whose budget was spent before it was resumed is complete
        total = self._first if self._is_budget_spent() else config.iterations
        log.info("%s", self._describe())
        if self._is_snapshot_due(self._first):  # a kill may have come between it and its checkpoint
            self._keep_snapshot(self._first)
        self._estimate.announce()
        progress = Progress(
            "condense", total, done=self._first, images_per_step=self._images, bar=ranks.leads
        )
        profiling = profile_iterations(self._run.path, config.profile and ranks.leads)
        with (
            stop_signals(patient=ranks.size > 1) as stop_requested,
            self._writer,
            self._condenser,
            self._metrics,
            progress,
            profiling as end_iteration,
        ):
            for done in range(self._first + 1, total + 1):
                self._iterate(done)
                end_iteration()
                stop = ranks.any(stop_requested())
                complete = done == total or self._is_budget_spent()
                last = stop or complete
                log_due = last or done % config.log_every == 0
                if log_due:
                    progress.update(done, f"loss {self._metrics.flush():.5f}")
                kept = self._is_snapshot_due(done)
                if last or kept or self._is_checkpoint_due(done, log_due):
                    self._save(done)
                if kept:
                    self._keep_snapshot(done)
                if complete:
                    if done < total:
                        log.info("%d iterations in the %g s given", done, config.budget)
                    break
                if stop:
                    self._finish_checkpoint()
                    raise Interrupted(
                        f"interrupted after iteration {done}, checkpoint saved; resume with: "
                        f"python -m m3d_fast.condense --out {self._run.path} --resume"
                    )
            self._finish_checkpoint()
        with ranks.together():
            if ranks.leads:
                self._write_result()

    def _find_rate(self, iteration: int) -> float:
        """Learning rate of the images in ``iteration``, from 0."""
        return self._config.lr_img * self._config.share_of_rate(iteration)

    def _is_budget_spent(self) -> bool:
        """Whether the time for iterations is over, on all ranks."""
        budget = self._config.budget
        if budget is None:
            return False
        return self._ranks.any(self._spent + time.monotonic() - self._clock >= budget)

    def _iterate(self, done: int) -> None:
        """Take the iteration after which ``done`` are complete."""
        # a checkpoint writes a line of metrics too; elsewhere the value costs work that the
        # gradient does not need
        config = self._config
        every = (config.log_every, config.checkpoint_every, config.snapshot_every)
        value = done == config.iterations or any(n and done % n == 0 for n in every)
        result = self._condenser.step(done - 1, value=value)
        self._metrics.add(result)
        self._estimate.observe(done, result)

    def _is_snapshot_due(self, done: int) -> bool:
        every = self._config.snapshot_every
        return every is not None and done > 0 and done % every == 0

    def _keep_snapshot(self, done: int) -> None:
        """Write the set of the checkpoint just saved, that of iteration ``done``."""
        self._finish_checkpoint()
        run, file = self._run, self._run.snapshot_file(done)
        with self._ranks.together():
            if self._ranks.leads:
                with run.report_write_errors():
                    file.parent.mkdir(exist_ok=True)
                pixels = run.checkpoints.read_pixels()
                write_condensed_set(file, self._config, self._condenser.real, pixels, done)

    def _is_checkpoint_due(self, done: int, log_due: bool) -> bool:
        """Whether all ranks save now; without a fixed interval, they agree when a line is due."""
        if self._writer.every is not None:
            return done % self._writer.every == 0
        if not log_due:
            return False
        with self._ranks.together():
            due = self._writer.is_due()
        return not self._ranks.any(not due)

    def _save(self, done: int) -> None:
        self._metrics.flush()  # raises for a gradient that is not finite: such a state is not saved
        self._finish_checkpoint()
        # all shards of the last checkpoint are written, so the one before it can go
        self._remove_old_checkpoints()
        with self._ranks.together():
            self._writer.save(self._condenser.state(), done)

    def _finish_checkpoint(self) -> None:
        with self._ranks.together():
            self._writer.wait()

    def _remove_old_checkpoints(self) -> None:
        with self._ranks.together():
            if self._ranks.leads:
                self._run.checkpoints.remove_old()

    def _restore(self) -> int:
        """Load the run's checkpoint, if there is one; returns the number of complete iterations."""
        self._remove_old_checkpoints()  # and shards of one that was never complete
        iteration = 0
        with self._ranks.together():
            checkpoint = self._run.checkpoints.load(self._condenser.classes)
            if checkpoint is not None:
                tensors, iteration = checkpoint
                self._condenser.load_state(tensors)
                log.info("resumed after iteration %d from %s", iteration, self._run.path)
        with self._ranks.together():
            if self._ranks.leads:
                self._run.rewind_metrics(iteration)
        return iteration

    def _write_result(self) -> None:
        """Write the condensed set from the shards of the last checkpoint, and its pictures."""
        run = self._run
        run.checkpoints.remove_old()
        iterations = run.checkpoints.newest_iteration() or 0
        pixels = run.checkpoints.read_pixels()
        write_result(run, self._config, self._condenser.real, pixels, iterations)

    def _describe(self) -> str:
        config, condenser, ranks = self._config, self._condenser, self._ranks
        arithmetic = f"{config.precision} {'compiled' if config.compile else 'eager'}"
        job = f", {ranks.size} ranks" if ranks.size > 1 else ""
        return (
            f"{config.method} on {config.dataset}: {condenser.real.num_classes} classes x "
            f"{config.ipc} images of {config.size} px, factor {config.factor}, iterations "
            f"{self._first} to {config.iterations}, {config.network} {arithmetic} on "
            f"{config.device}{job}, {max(map(len, condenser.chunks))} classes at a time, "
            f"run folder {config.out}"
        )
