"""The condensation loop: a run from its first iteration, or its checkpoint, to its files."""

import logging
from dataclasses import replace

import torch

from . import __version__
from .condenser import Condenser, choose_chunk
from .config import CondenseConfig, ResolvedConfig
from .errors import UserError
from .interruption import Interrupted, stop_signals
from .loaders import open_dataset
from .metrics import Metrics
from .progress import Progress
from .randomness import derived_seed
from .run import RunFolder, started_config
from .synthetic import SyntheticSet

log = logging.getLogger("m3d_fast")


def condense(config: CondenseConfig, *, resume: bool = False) -> SyntheticSet:
    """Condense a data set into its run folder.

    The last iterate is kept; no test image is touched. Progress goes to the logger ``m3d_fast``.

    Args:
        config: settings; what is None takes the paper's value, or when resuming the run's.
        resume: go on from the run folder's checkpoint, if there is one.

    Returns:
        The condensed set, as in ``synthetic.safetensors``.

    Raises:
        UserError, DataError: for settings or data that cannot be, or a loss that is not finite.
        Interrupted: after Ctrl-C or SIGTERM, with the checkpoint saved.
    """
    settings = started_config(config, resume=resume).resolved()
    run = RunFolder(settings.out)
    run.check(settings, resume=resume)
    real = open_dataset(
        settings.dataset,
        settings.data_root,
        size=settings.size,
        device=settings.device,
        seed=derived_seed(settings.seed, "sampling"),
    )
    smallest = min(real.class_sizes)
    if settings.ipc > smallest:
        raise UserError(
            f"ipc: expected at most the {smallest} images of the smallest class, got {settings.ipc}"
        )
    settings = replace(settings, chunk=choose_chunk(settings, real.num_classes))
    condenser = Condenser(settings, real)
    run.start(settings, resume=resume)
    _run_loop(condenser, run)
    synthetic = _synthetic_set(condenser)
    synthetic.save(run.synthetic_file)
    grid, *_ = run.save_pictures(synthetic)
    log.info("condensed set: %s, picture: %s", run.synthetic_file, grid)
    return synthetic


def _run_loop(condenser: Condenser, run: RunFolder) -> None:
    config, total = condenser.config, condenser.config.iterations
    first = _restore(condenser, run)
    metrics = Metrics(run, condenser.real.class_names, first)
    log.info(_summary(config, condenser, first))
    progress = Progress("condense", total, done=first, images_per_step=condenser.images_per_step)
    with stop_signals() as stopped, metrics, progress:
        for iteration in range(first, total):
            metrics.add(condenser.step(iteration))
            done = iteration + 1
            if done % config.log_every == 0 or done == total or stopped():
                progress.update(done, f"loss {metrics.flush():.5f}")
            if done % config.checkpoint_every == 0 or done == total or stopped():
                metrics.flush()
                run.save_checkpoint(condenser.state(), done)
            if stopped() and done < total:
                raise Interrupted(
                    f"interrupted after iteration {done}, checkpoint saved; go on with: "
                    f"python -m m3d_fast.condense --out {run.path} --resume"
                )


def _synthetic_set(condenser: Condenser) -> SyntheticSet:
    config, real = condenser.config, condenser.real
    return SyntheticSet(
        images=condenser.pixels.detach().flatten(0, 1).cpu().clone(),
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


def _restore(condenser: Condenser, run: RunFolder) -> int:
    """Load the run's checkpoint, if any; returns the iterations done."""
    checkpoint = run.load_checkpoint()
    iteration = 0
    if checkpoint is not None:
        tensors, iteration = checkpoint
        condenser.load_state(tensors)
        log.info("resumed after iteration %d from %s", iteration, run.checkpoint_file)
    run.rewind_metrics(iteration)
    return iteration


def _summary(config: ResolvedConfig, condenser: Condenser, first: int) -> str:
    compiled = "compiled" if config.compile else "eager"
    return (
        f"{config.method} on {config.dataset}: {condenser.real.num_classes} classes x {config.ipc} "
        f"images of {config.size} px, factor {config.factor}, iterations {first} to "
        f"{config.iterations}, {config.network} {config.precision} {compiled} on {config.device}, "
        f"{config.chunk} classes at a time, run folder {config.out}"
    )
