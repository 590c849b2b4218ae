"""Evaluate a condensed set: train networks on it and on baselines, test them on real images.

The protocol is IDC's (arXiv 2205.14959), which M3D uses. Only this module reads test images.
"""

import hashlib
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_name, check_positive
from ..common.errors import UserError
from ..common.hardware import (
    check_precision,
    compile_pays,
    default_precision,
    resolve_device,
    use_device,
)
from ..common.progress import Progress
from ..common.seeds import generator
from ..distributed import Ranks, join_ranks
from ..loaders import CACHES, LOADERS, RealImages, open_dataset
from ..networks import build_network, check_network
from ..presets import Protocol, protocol_for
from ..run.environment import describe_environment
from ..run.folder import RunFolder
from ..synthetic import StoredImages, SyntheticSet
from .config import BASELINES, EvaluateConfig
from .results import Outcome, Results, Task
from .trainer import Trainer
from .training_sets import TrainingSets

SELECTION = "last iterate; no test image was seen before this evaluation"


def evaluate(run: str | Path, config: EvaluateConfig | None = None) -> dict[str, Any]:
    """Train networks on the run's condensed set, its initialisation and baselines; test them.

    ``evaluation.json`` in the run folder is written after every network; networks that it already
    holds, under the same protocol, are not trained again. Under torchrun each rank trains some of
    the networks; the results are those of one process.

    Args:
        run: the run folder.
        config: settings; None takes the published protocol's value.

    Returns:
        The content of ``evaluation.json``: accuracies as fractions of 1, ``std`` as the sample
        standard deviation over networks (None for one).

    Raises:
        UserError: for invalid settings, files or data.
        RankLost: if another rank of the job is gone.
    """
    folder = RunFolder(run)
    with join_ranks() as ranks, folder.lock:
        with ranks.together():
            folder.load_config()  # raises where it is no run folder
            if ranks.leads:
                folder.lock.check_free()
        settings = config or EvaluateConfig()
        # the first rank may pack the test images for the others
        evaluation = ranks.leader_first(lambda: Evaluation(folder, settings, ranks))
        with ranks.together():
            if ranks.leads:  # only now: invalid input leaves the folder unchanged
                folder.lock.acquire()
        with ranks.together():
            results = Results(folder.evaluation_file, evaluation.describe())
        with use_device(str(evaluation.device)):
            evaluation.complete(results)
    return results.content


class Evaluation:
    """Trains and tests the networks of one evaluation.

    Args:
        run: folder of a finished condensation.
        config: settings; None takes the published protocol's value.
        ranks: those of the job.

    Raises:
        UserError: for invalid settings, files or data.
    """

    def __init__(self, run: RunFolder, config: EvaluateConfig, ranks: Ranks) -> None:
        self.run, self.config, self.ranks = run, config, ranks
        self.settings = run.load_config()
        self.synthetic = SyntheticSet.load(run.synthetic_file)
        self.networks = _split_names(config.networks or self.settings.network)
        baselines = _split_names(config.baselines)
        for name in baselines:
            check_name("baselines", name, BASELINES)
        for name in self.networks:
            check_network(name)
        self.methods = (*baselines, "initial", self.settings.method)
        self.device = torch.device(ranks.select_device(resolve_device(config.device)))
        self.precision = config.precision or default_precision(str(self.device))
        check_precision(self.precision, str(self.device))
        check_name("loader", config.loader or self.settings.loader, LOADERS)
        check_name("cache", config.cache or self.settings.cache, CACHES)
        if config.workers is not None:
            check_positive("workers", config.workers)
        self.size = self.synthetic.images.shape[-1]
        self.protocol = self._choose_protocol()
        self.test = self._open("test")
        self._check_classes()
        self._trainers: dict[str, Trainer] = {}
        self._sets = TrainingSets(self.settings, self.synthetic, lambda: self.train, config.seed)

    @cached_property
    def train(self) -> RealImages:
        """Training images, for the baselines and the initialisation; opened when first used."""
        return self._open("train")

    def _choose_protocol(self) -> Protocol:
        decoded = self.synthetic.ipc * self.synthetic.factor**2
        protocol = protocol_for(
            self.settings.dataset, self.size, decoded, self.synthetic.num_classes
        )
        if self.config.epochs is not None:
            check_positive("epochs", self.config.epochs)
            protocol = replace(protocol, epochs=self.config.epochs)
        if self.config.repeats is not None:
            check_positive("repeats", self.config.repeats)
            protocol = replace(protocol, repeats=self.config.repeats)
        return protocol

    def _open(self, split: str) -> RealImages:
        config, run = self.config, self.settings
        return open_dataset(
            run.dataset,
            config.data_root or run.data_root,
            split=split,
            size=self.size,
            device=self.device,
            loader=config.loader or run.loader,
            cache=config.cache or run.cache,
            workers=config.workers or run.workers,
        )

    def _check_classes(self) -> None:
        condensed, real = tuple(self.synthetic.class_names), self.test.class_names
        if real != condensed:
            raise UserError(
                f"the condensed set has {len(condensed)} classes ({', '.join(condensed[:3])}, ..); "
                f"the data {len(real)} ({', '.join(real[:3])}, ..); "
                f"give the --data-root the set was condensed from"
            )

    def describe(self) -> dict[str, Any]:
        """The content of ``evaluation.json``, without results."""
        with self.run.synthetic_file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        protocol = asdict(self.protocol) | {"seed": self.config.seed, "precision": self.precision}
        del protocol["repeats"]
        protocol["milestones"] = list(protocol["milestones"])
        return {
            "protocol": protocol,
            "selection": SELECTION,
            "dataset": self.settings.dataset,
            "ipc": self.synthetic.ipc,
            "factor": self.synthetic.factor,
            "method": self.settings.method,
            "condensation_seconds": self.run.condensation_seconds(),
            "test_images": sum(self.test.class_sizes),
            "synthetic_sha256": digest,
            "environment": describe_environment(),
        }

    def complete(self, results: Results) -> None:
        """Add the networks that are missing in ``results``, one per rank at a time."""
        ranks = self.ranks
        with ranks.together():
            if ranks.leads:
                results.set_outdated_aside()
        missing = results.find_missing(self.methods, self.networks, self.protocol.repeats)
        if any(task.method != self.settings.method for task in missing):
            ranks.leader_first(lambda: self.train)
        for start in range(0, len(missing), ranks.size):
            own = missing[start : start + ranks.size][ranks.rank :][:1]  # none for ranks left over
            with ranks.together():
                trained = [self._run_task(task) for task in own]
            outcomes = [outcome for part in ranks.gather(trained) for outcome in part]
            for outcome in outcomes:
                results.add(outcome)
            with ranks.together():
                if ranks.leads:
                    results.save()
            results.log_completed(outcomes, self.protocol.repeats)

    def _run_task(self, task: Task) -> Outcome:
        start = time.perf_counter()
        trainer = self._get_trainer(task.network)
        images, labels = self._sets.get(task, trainer)
        accuracy = self._measure_accuracy(trainer, images, labels, task)
        return Outcome(task, accuracy, time.perf_counter() - start, len(images))

    def _get_trainer(self, name: str) -> Trainer:
        if name not in self._trainers:
            channels, classes = self.synthetic.images.shape[1], self.synthetic.num_classes
            compile = self.config.compile
            if compile is None:
                compile = compile_pays(
                    self.protocol.repeats * self._count_images_per_network(), self.size
                )
            self._trainers[name] = Trainer(
                build_network(name, channels, self.size, classes),
                self.protocol,
                self.synthetic.mean,
                self.synthetic.std,
                device=self.device,
                precision=self.precision,
                compile=compile,
            )
        return self._trainers[name]

    def _count_images_per_network(self) -> int:
        decoded = len(self.synthetic.images) * self.synthetic.factor**2
        return decoded * self.protocol.epochs + sum(self.test.class_sizes)

    def _measure_accuracy(
        self, trainer: Trainer, images: StoredImages, labels: Tensor, task: Task
    ) -> float:
        seed, epochs, repeat = self.config.seed, self.protocol.epochs, task.repeat
        name = f"{task.method} {task.network}"
        with Progress(name, epochs, images_per_step=len(images), bar=self.ranks.leads) as progress:
            trainer.fit(
                images,
                labels,
                initial=generator(seed, "evaluation-network", 0, repeat, device=self.device),
                stream=generator(seed, "evaluation-training", 0, repeat, device=self.device),
                on_epoch=lambda epoch, loss: progress.update(epoch),
            )
        return trainer.measure_accuracy(self.test)


def _split_names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",") if name.strip())
