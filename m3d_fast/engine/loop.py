"""The condensation loop: a run from its first iteration, or its checkpoint, to its files."""

import logging
from dataclasses import replace

import torch

from .. import __version__
from ..common.errors import UserError
from ..common.progress import Progress
from ..common.seeds import derived_seed
from ..common.signals import Interrupted, stop_signals
from ..config import CondenseConfig, ResolvedConfig
from ..distributed import Ranks, joined_ranks
from ..loaders import RealImages, dataset_info, open_dataset
from ..run.checkpoint import CheckpointWriter
from ..run.folder import RunFolder, started_config
from ..run.pictures import save_pictures
from ..synthetic import SyntheticSet, save_set
from .condenser import Condenser
from .estimate import Plan, refuse_what_cannot_fit
from .metrics import Metrics
from .profiling import profiled

log = logging.getLogger("m3d_fast")


def condense(config: CondenseConfig, *, resume: bool = False) -> SyntheticSet:
    """Condense a data set into its run folder; under torchrun, each rank its share of the classes.

    The last iterate is kept; no test image is touched. Progress goes to the logger ``m3d_fast``.

    Args:
        config: settings; what is not given takes the paper's value, or when resuming the run's.
        resume: go on from the run folder's checkpoint, if there is one.

    Returns:
        The condensed set: views of the mapped ``synthetic.safetensors``.

    Raises:
        UserError, DataError: for settings or data that cannot be, a loss that is not finite, or a
            disk that refuses.
        Interrupted: after Ctrl-C or SIGTERM, with the checkpoint saved.
        RankLost: if another rank of the job is gone.
    """
    with joined_ranks() as ranks:
        settings = ranks.agree(lambda: started_config(config, resume=resume).resolved())
        run = RunFolder(settings.out)
        ranks.lead(lambda: run.check(settings, resume=resume))
        local = replace(settings, device=ranks.agree(lambda: ranks.device(settings.device)))
        real = ranks.first_one_then_all(lambda: _open(local, ranks))
        classes = ranks.agree(lambda: ranks.share(real.num_classes))
        ranks.agree(lambda: refuse_what_cannot_fit(run, local, real, classes))
        condenser = ranks.agree(lambda: Condenser(local, real, classes))
        with run.lock:
            ranks.lead(lambda: run.start(settings, resume=resume))
            ranks.agree(run.lock.share)
            _run_loop(condenser, run, ranks)
            ranks.lead(lambda: _finish(condenser, run))
    return SyntheticSet.load(run.synthetic_file)


def _open(config: ResolvedConfig, ranks: Ranks) -> RealImages:
    """The training images; where their number is known before, with room for this rank's alone."""
    known = dataset_info(config.dataset).num_classes
    real = open_dataset(
        config.dataset,
        config.data_root,
        size=config.size,
        device=config.device,
        seed=derived_seed(config.seed, "sampling"),
        loader=config.loader,
        cache=config.cache,
        workers=config.workers,
        classes=None if known is None else ranks.share(known),
    )
    smallest = min(real.class_sizes)
    if config.ipc > smallest:
        raise UserError(
            f"ipc: expected at most the {smallest} images of the smallest class, got {config.ipc}"
        )
    return real


def _run_loop(condenser: Condenser, run: RunFolder, ranks: Ranks) -> None:
    config, total, real = condenser.config, condenser.config.iterations, condenser.real
    first = _restore(condenser, run, ranks)
    images = sum(ranks.gather(condenser.images_per_step))
    log.info(_summary(config, condenser, first, ranks))
    metrics = Metrics(run, ranks, real.class_names, first=first, images_per_step=images)
    plan = Plan(condenser, run, ranks, first)
    plan.announce()
    progress = Progress("condense", total, done=first, images_per_step=images, bar=ranks.leads)
    writer = CheckpointWriter(
        run.checkpoints, condenser.classes, real.num_classes, config.checkpoint_every
    )
    profiling = profiled(run.path, config.profile and ranks.leads)
    with (
        stop_signals(patient=ranks.size > 1) as stopped,
        writer,
        condenser,
        metrics,
        progress,
        profiling as iteration_done,
    ):
        for iteration in range(first, total):
            done = iteration + 1
            # the value costs work that a gradient does not need
            step = condenser.step(iteration, value=_shown(config, done))
            metrics.add(step)
            plan.observe(done, step)
            iteration_done()
            stop = ranks.any(stopped())
            last = stop or done == total
            tick = last or done % config.log_every == 0
            if tick:
                progress.update(done, f"loss {metrics.flush():.5f}")
            if last or _due(writer, ranks, done, tick=tick):
                metrics.flush()  # a state known to be bad is never saved
                _save(condenser, writer, run, ranks, done)
            if stop and done < total:
                ranks.agree(writer.wait)
                raise Interrupted(
                    f"interrupted after iteration {done}, checkpoint saved; go on with: "
                    f"python -m m3d_fast.condense --out {run.path} --resume"
                )
        ranks.agree(writer.wait)


def _shown(config: ResolvedConfig, done: int) -> bool:
    """Whether a line of metrics is written after so many iterations, come what may."""
    every = config.checkpoint_every
    return (
        done % config.log_every == 0
        or done == config.iterations
        or (every is not None and done % every == 0)
    )


def _due(writer: CheckpointWriter, ranks: Ranks, done: int, *, tick: bool) -> bool:
    """Whether all ranks save now: asked every iteration, so it talks only where it must."""
    if writer.every is not None:
        return done % writer.every == 0
    return tick and not ranks.any(not ranks.agree(writer.is_time))


def _save(
    condenser: Condenser, writer: CheckpointWriter, run: RunFolder, ranks: Ranks, done: int
) -> None:
    ranks.agree(writer.wait)
    # now that every shard of the last checkpoint is written, the one before it can go
    ranks.lead(run.checkpoints.tidy)
    ranks.agree(lambda: writer.save(condenser.state(), done))


def _restore(condenser: Condenser, run: RunFolder, ranks: Ranks) -> int:
    """Load the run's checkpoint, if any; returns the iterations done."""
    ranks.lead(run.checkpoints.tidy)  # shards of a checkpoint that was never completed
    checkpoint = ranks.agree(lambda: run.checkpoints.load(condenser.classes))
    iteration = 0
    if checkpoint is not None:
        tensors, iteration = checkpoint
        ranks.agree(lambda: condenser.load_state(tensors))
        log.info("resumed after iteration %d from %s", iteration, run.path)
    ranks.lead(lambda: run.rewind_metrics(iteration))
    return iteration


def _finish(condenser: Condenser, run: RunFolder) -> None:
    """Write the condensed set from the last checkpoint, streamed, and its pictures."""
    config, real = condenser.config, condenser.real
    run.checkpoints.tidy()
    described = SyntheticSet(
        images=torch.empty(0),
        labels=torch.arange(real.num_classes).repeat_interleave(config.ipc),
        class_names=real.class_names,
        factor=config.factor,
        mean=real.mean,
        std=real.std,
        info={
            "dataset": config.dataset,
            "method": config.method,
            "iterations": config.iterations,
            "seed": config.seed,
            "version": __version__,
        },
    )
    shards = [pixels.flatten(0, 1) for pixels in run.checkpoints.pixels()]
    save_set(run.synthetic_file, described, shards)
    grid, *_ = save_pictures(SyntheticSet.load(run.synthetic_file), run.path)
    log.info("condensed set: %s, picture: %s", run.synthetic_file, grid)


def _summary(config: ResolvedConfig, condenser: Condenser, first: int, ranks: Ranks) -> str:
    compiled = "compiled" if config.compile else "eager"
    shared = f", {ranks.size} ranks" if ranks.size > 1 else ""
    return (
        f"{config.method} on {config.dataset}: {condenser.real.num_classes} classes x {config.ipc} "
        f"images of {config.size} px, factor {config.factor}, iterations {first} to "
        f"{config.iterations}, {config.network} {config.precision} {compiled} on {config.device}"
        f"{shared}, {max(map(len, condenser.chunks))} classes at a time, run folder {config.out}"
    )
