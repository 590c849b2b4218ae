"""The result of a run: the condensed set and its pictures, in the run folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..config import ResolvedConfig
from ..loaders import RealImages
from ..synthetic import SyntheticSet, save_set
from .folder import RunFolder
from .pictures import save_pictures

log = logging.getLogger("m3d_fast")


def write_condensed_set(
    path: Path,
    config: ResolvedConfig,
    real: RealImages,
    parts: Sequence[Tensor],
    iterations: int,
) -> None:
    """Write the condensed set of a run.

    Args:
        path: of the file.
        config: of the run.
        real: its training images.
        parts: pixels of all classes in turn, float32 ``(classes, ipc, channels, H, W)`` in [0, 1].
        iterations: complete ones.

    Raises:
        UserError: if it cannot be written.
    """
    save_set(
        path,
        [pixels.flatten(0, 1) for pixels in parts],
        torch.arange(real.num_classes).repeat_interleave(config.ipc),
        class_names=real.class_names,
        factor=config.factor,
        basis=config.build_basis(real.num_classes, real.image_shape),
        mean=real.mean,
        std=real.std,
        info={
            "dataset": config.dataset,
            "method": config.method,
            "iterations": iterations,
            "seed": config.seed,
            "version": __version__,
        },
    )


def write_result(
    run: RunFolder,
    config: ResolvedConfig,
    real: RealImages,
    parts: Sequence[Tensor],
    iterations: int,
) -> None:
    """Write ``synthetic.safetensors`` of a run and its pictures, as :func:`write_condensed_set`."""
    write_condensed_set(run.synthetic_file, config, real, parts, iterations)
    grid, *_ = save_pictures(SyntheticSet.load(run.synthetic_file), run.path)
    log.info("condensed set: %s, picture: %s", run.synthetic_file, grid)
