"""Training the networks of a pool one after the other, resumable at any instant."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError
from ...common.hardware import compile_pays
from ...common.processes import processes_on_machine, rank_of_process
from ...common.progress import Progress
from ...common.seeds import derive_seed, generator
from ...common.signals import Interrupted, stop_signals
from ...common.tensors import read_tensors, write_tensors
from ...config import ResolvedConfig
from ...loaders import ClassSampler, RealImages
from ...presets import cutmix_probability, dsa_strategy
from .training import IntArray, LabelledRows, NetworkTraining, Recipe, leave_out_cutout
from .weights import Weights

log = logging.getLogger("m3d_fast")

POOL_FORMAT, PARTIAL_FORMAT = "m3d_fast pool 1", "m3d_fast pool in training 1"
BATCH = 128
MILESTONES, GAMMA = (2 / 3, 5 / 6), 0.2  # of the training, where the learning rate falls
SECONDS_APART = 30.0  # between writes of what is trained


def count_stages(config: ResolvedConfig) -> int:
    """Points along the training at which weights are kept; the last is its end."""
    return max(1, config.pool_stages)


class PoolTraining:
    """Trains every network of a pool as NCFM does (arXiv 2502.20653).

    SGD with learning rate 0.01, x0.2 at two and five sixths, momentum 0.9, weight decay 5e-4,
    batches of 128, DSA and CutMix, 60 epochs unless set. Each batch is a function of the seed, the
    network and the step, so a training that was killed continues from its last write.

    Args:
        config: resolved settings.
        real: training images of all classes.
        path: of the finished pool.
        description: of the pool, kept in the file.
    """

    def __init__(
        self, config: ResolvedConfig, real: RealImages, path: Path, description: dict[str, Any]
    ) -> None:
        self._config, self._device, self._path = config, real.device, path
        self._partial = path.with_suffix(".partial.safetensors")
        self._description = description
        self._rows = LabelledRows(real)
        self._batch = min(BATCH, self._rows.count)
        self._steps = max(1, round(config.pool_epochs * self._rows.count / self._batch))
        self._total = config.pool * self._steps
        cutmix = cutmix_probability(config.size)
        recipe = Recipe(self._batch, leave_out_cutout(dsa_strategy(config.dataset)), cutmix)
        # not as in the run: pools are shared by runs of any length
        compile = compile_pays(config.size, trained=self._total * self._batch)
        self._training = NetworkTraining(config, real, recipe, compile=compile)
        self._current = Weights(self._training.network.parameters())
        self._momentum = Weights(self._training.momentum)
        stages, parameters = count_stages(config), self._current.count
        self._weights = torch.zeros(config.pool, 1 + stages, parameters, device=self._device)
        self._kept_at = [round(self._steps * stage / stages) for stage in range(stages + 1)]

    def run(self) -> None:
        """Train what is left and write the pool.

        Raises:
            UserError: if a file is damaged or cannot be written.
            Interrupted: after Ctrl-C or SIGTERM, with what is trained saved.
        """
        done, seconds = self._restore()
        pool = f"{self._config.pool} networks, {self._config.pool_epochs:g} epochs each"
        log.info("training a pool of %s, into %s", pool, self._path)
        first, start = done, time.monotonic() - seconds
        written, bar = time.monotonic(), rank_of_process() == 0
        progress = Progress(
            "train pool", self._total, done=done, images_per_step=self._batch, bar=bar
        )
        with stop_signals(patient=processes_on_machine() > 1) as stop_requested, progress:
            for images, labels in self._rows.read(lambda: self._iterate_rows(first)):
                self._take(done, images, labels)
                done += 1
                progress.update(done)
                stop = stop_requested()
                if stop or time.monotonic() - written > SECONDS_APART:
                    self._write_partial(done, time.monotonic() - start)
                    written = time.monotonic()
                if stop:
                    raise Interrupted(
                        f"interrupted while the pool of networks was trained, {done} of "
                        f"{self._total} steps are kept; the same command continues"
                    )
        self._write(time.monotonic() - start)

    def _take(self, done: int, images: Tensor, labels: Tensor) -> None:
        """Take the step after which ``done + 1`` are complete."""
        network, step = divmod(done, self._steps)
        if step == 0:
            drawing = generator(self._config.seed, "pool-network", network, device=self._device)
            self._training.initialise(drawing)
            self._keep(network, 0)
        counters = ("pool-training", network, step + 1)
        stream = generator(self._config.seed, *counters, device=self._device)
        self._training.take(images, labels, stream, self._find_rate(step))
        self._keep(network, step + 1)

    def _iterate_rows(self, done: int) -> Iterator[IntArray]:
        """Rows of every batch after ``done``: for each network its own endless shuffle."""
        for network in range(done // self._steps, self._config.pool):
            first = max(0, done - network * self._steps)
            seed = derive_seed(self._config.seed, "pool-training", network)
            sampler = ClassSampler((self._rows.count,), seed)
            sampler.skip([0], first * self._batch)
            for _ in range(first, self._steps):
                yield sampler.draw([0], self._batch)[0]

    def _find_rate(self, step: int) -> float:
        """Learning rate of a step, a multiple of the recipe's."""
        return GAMMA ** sum(step >= int(share * self._steps) for share in MILESTONES)

    def _keep(self, network: int, steps: int) -> None:
        for stage, kept_at in enumerate(self._kept_at):
            if steps == kept_at:
                self._current.read(self._weights[network, stage])

    def _restore(self) -> tuple[int, float]:
        """Load what another process wrote before it ended; returns its steps and seconds."""
        if not self._partial.exists():
            return 0, 0.0
        try:
            tensors, metadata = read_tensors(self._partial, PARTIAL_FORMAT)
        except UserError as error:
            raise UserError(f"{error}; remove it to train the pool from its start") from error
        self._weights.copy_(tensors["weights"])
        self._current.write(tensors["current"])
        self._momentum.write(tensors["momentum"])
        return metadata["steps"], metadata["seconds"]

    def _write_partial(self, steps: int, seconds: float) -> None:
        tensors = {
            "weights": self._weights,
            "current": self._current.copy(),
            "momentum": self._momentum.copy(),
        }
        metadata = {"format": PARTIAL_FORMAT, "steps": steps, "seconds": seconds}
        write_tensors(self._partial, tensors, metadata | {"pool": self._description})

    def _write(self, seconds: float) -> None:
        metadata = {"format": POOL_FORMAT, "seconds": seconds, "pool": self._description}
        write_tensors(self._path, {"weights": self._weights}, metadata)
        self._partial.unlink(missing_ok=True)
