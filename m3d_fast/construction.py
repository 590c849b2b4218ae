"""A small training set in its run folder: condensed by a method, or selected as a coreset."""

import logging
import time

from .common.errors import UserError
from .common.hardware import peak_bytes, use_device
from .common.seeds import derive_seed
from .config import CondenseConfig, ResolvedConfig
from .coreset import CORESETS, Features
from .distributed import Ranks, join_ranks
from .engine.loop import condense as condense_by_steps
from .engine.loop import open_training_images
from .evaluation.features import train_features
from .evaluation.protocols import protocol_for
from .evaluation.trainer import Trainer
from .loaders import RealImages
from .networks import build_network
from .run.condensed import write_result
from .run.folder import RunFolder, resolve_resumed_config
from .synthetic import SyntheticSet

log = logging.getLogger("m3d_fast")


def condense(config: CondenseConfig, *, resume: bool = False) -> SyntheticSet:
    """Condense a data set into its run folder; under torchrun, each rank its share of the classes.

    The last iterate is kept; no test image is read. Progress goes to the logger ``m3d_fast``. A
    coreset (``method`` "random", "herding" or "k-center") is selected instead of condensed.

    Args:
        config: settings; None takes the paper's value, or the run's own when it is resumed.
        resume: continue from the checkpoint of the run folder, if there is one.

    Returns:
        The condensed set: views of the mapped ``synthetic.safetensors``.

    Raises:
        UserError: for invalid settings or data, a gradient that is not finite, or a write error.
        Interrupted: after Ctrl-C or SIGTERM, with the checkpoint saved.
        RankLost: if another rank of the job is gone.
    """
    if resolve_resumed_config(config, resume=resume).method not in CORESETS:
        return condense_by_steps(config, resume=resume)
    with join_ranks() as ranks:
        return _select_coreset(config, ranks, resume=resume)


def _select_coreset(config: CondenseConfig, ranks: Ranks, *, resume: bool) -> SyntheticSet:
    settings = resolve_resumed_config(config, resume=resume).resolve()
    if ranks.size > 1:
        raise UserError(
            f"{settings.method} is selected by one process, {ranks.size} were started; "
            f"leave out torchrun"
        )
    run = RunFolder(settings.out)
    run.check(settings, resume=resume)
    with use_device(settings.device), run.lock:
        real = open_training_images(settings, ranks)
        run.start(settings, resume=resume)
        if not run.synthetic_file.exists():
            _select(settings, run, real)
    return SyntheticSet.load(run.synthetic_file)


def _select(config: ResolvedConfig, run: RunFolder, real: RealImages) -> None:
    log.info(
        "%s on %s: %d classes x %d images of %d px, run folder %s",
        config.method,
        config.dataset,
        real.num_classes,
        config.ipc,
        config.size,
        config.out,
    )
    start = time.monotonic()
    seed = derive_seed(config.seed, "coreset", 1, 0)
    choose = CORESETS[config.method]
    pixels = choose(real, config.ipc, seed, lambda: _train_features(config, real)).float() / 255
    # before the condensed set, with which the run is complete
    run.write_single_metrics(time.monotonic() - start, peak_bytes(real.device))
    write_result(run, config, real, [pixels.cpu()], 0)


def _train_features(config: ResolvedConfig, real: RealImages) -> Features:
    protocol = protocol_for(config.dataset, config.size, config.ipc, real.num_classes)
    network = build_network(config.network, real.image_shape[0], config.size, real.num_classes)
    trainer = Trainer(
        network,
        protocol,
        real.mean,
        real.std,
        device=real.device,
        precision=config.precision,
        compile=False,
    )
    return train_features(trainer, protocol, real, config.seed)
