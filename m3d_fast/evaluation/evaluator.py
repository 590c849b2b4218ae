"""Evaluate a condensed set: train networks on it and on baselines, test them on real images.

It is IDC's protocol (arXiv 2205.14959, used by M3D). Test images are touched here and nowhere else.
"""

import hashlib
import time
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_name, check_positive
from ..common.errors import UserError
from ..common.hardware import PRECISIONS, compile_pays, default_precision, resolve_device
from ..common.progress import Progress
from ..common.seeds import generator
from ..distributed import Ranks, joined_ranks
from ..loaders import CACHES, LOADERS, RealImages, open_dataset
from ..networks import build_network, check_network
from ..presets import Protocol, protocol_for
from ..run.folder import RunFolder, environment
from ..synthetic import StoredImages, SyntheticSet
from .config import BASELINES, EvaluateConfig
from .results import Outcome, Results, Task
from .trainer import Trainer
from .training_sets import TrainingSets

SELECTION = "last iterate; no test image was seen before this evaluation"


def evaluate(run: str | Path, config: EvaluateConfig | None = None) -> dict[str, Any]:
    """Train networks on the run's condensed set, its initialisation and baselines; test them.

    ``evaluation.json`` in the run folder is brought up to date after every network; networks it
    already holds, under the same protocol, are not trained again. Under torchrun each rank trains
    some of the networks; the results are those of one process.

    Args:
        run: the run folder.
        config: settings; what is None takes the published protocol's value.

    Returns:
        The content of ``evaluation.json``: accuracies are fractions of 1, ``std`` is the sample
        standard deviation over networks (None for one).

    Raises:
        UserError, DataError: for settings, files or data that cannot be.
        RankLost: if another rank of the job is gone.
    """
    folder = RunFolder(run)
    with joined_ranks() as ranks, folder.lock:
        ranks.agree(folder.load_config)  # is it a run folder?
        ranks.lead(folder.lock.probe)
        settings = config or EvaluateConfig()
        # the first rank may have to pack the test images for the others
        evaluation = ranks.first_one_then_all(lambda: _Evaluation(folder, settings, ranks))
        ranks.lead(folder.lock.acquire)  # only now: a mistake leaves the folder as it was
        ranks.first_one_then_all(lambda: evaluation.results)
        evaluation.complete()
    return evaluation.results.content


class _Evaluation:
    def __init__(self, run: RunFolder, config: EvaluateConfig, ranks: Ranks) -> None:
        self.run, self.config, self.ranks = run, config, ranks
        self.settings = run.load_config()
        self.synthetic = SyntheticSet.load(run.synthetic_file)
        self.networks = _names(config.networks or self.settings.network)
        baselines = _names(config.baselines)
        for name in baselines:
            check_name("baselines", name, BASELINES)
        for name in self.networks:
            check_network(name)
        self.methods = (*baselines, "initial", self.settings.method)
        self.device = torch.device(ranks.device(resolve_device(config.device)))
        self.precision = config.precision or default_precision(str(self.device))
        check_name("precision", self.precision, PRECISIONS)
        check_name("loader", config.loader or self.settings.loader, LOADERS)
        check_name("cache", config.cache or self.settings.cache, CACHES)
        if config.workers is not None:
            check_positive("workers", config.workers)
        self.size = self.synthetic.images.shape[-1]
        self.protocol = self._protocol()
        self.test = self._open("test")
        self._check_data()
        self._trainers: dict[str, Trainer] = {}
        self._sets = TrainingSets(self.settings, self.synthetic, lambda: self.train, config.seed)

    @cached_property
    def results(self) -> Results:
        """What the run's evaluation holds; asked for once the folder's lock is held."""
        return Results(self.run.evaluation_file, self._described())

    @cached_property
    def train(self) -> RealImages:
        """Training images: baselines and the initialisation need them, the condensed set not."""
        return self._open("train")

    def _protocol(self) -> Protocol:
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

    def _check_data(self) -> None:
        condensed, real = tuple(self.synthetic.class_names), self.test.class_names
        if real != condensed:
            raise UserError(
                f"the condensed set has {len(condensed)} classes ({', '.join(condensed[:3])}, ..); "
                f"the data {len(real)} ({', '.join(real[:3])}, ..); "
                f"give the --data-root the set was condensed from"
            )

    def _described(self) -> dict[str, Any]:
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
            "environment": environment(),
        }

    def complete(self) -> None:
        """Train the networks that are still missing, one per rank at a time."""
        ranks, results = self.ranks, self.results
        ranks.lead(results.set_other_aside)
        missing = results.missing(self.methods, self.networks, self.protocol.repeats)
        if any(task.method != self.settings.method for task in missing):
            ranks.first_one_then_all(lambda: self.train)
        for start in range(0, len(missing), ranks.size):
            own = missing[start : start + ranks.size][ranks.rank :][:1]
            trained = ranks.agree(partial(self._train, own))
            outcomes = [outcome for part in ranks.gather(trained) for outcome in part]
            for outcome in outcomes:
                results.note(outcome)
            ranks.lead(results.save)
            results.log_completed(outcomes, self.protocol.repeats)

    def _train(self, tasks: list[Task]) -> list[Outcome]:
        outcomes = []
        for task in tasks:
            start = time.perf_counter()
            trainer = self._trainer(task.network)
            images, labels = self._sets.get(task, trainer)
            name = f"{task.method} {task.network}"
            accuracy = self._accuracy(trainer, images, labels, name, task.repeat)
            outcomes.append(Outcome(task, accuracy, time.perf_counter() - start, len(images)))
        return outcomes

    def _trainer(self, name: str) -> Trainer:
        if name not in self._trainers:
            channels, classes = self.synthetic.images.shape[1], self.synthetic.num_classes
            compile = self.config.compile
            if compile is None:
                compile = compile_pays(
                    self.protocol.repeats * self._images_per_network(), self.size
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

    def _images_per_network(self) -> int:
        decoded = len(self.synthetic.images) * self.synthetic.factor**2
        return decoded * self.protocol.epochs + sum(self.test.class_sizes)

    def _accuracy(
        self, trainer: Trainer, images: StoredImages, labels: Tensor, name: str, repeat: int
    ) -> float:
        seed, epochs = self.config.seed, self.protocol.epochs
        with Progress(name, epochs, images_per_step=len(images), bar=self.ranks.leads) as progress:
            trainer.fit(
                images,
                labels,
                initial=generator(seed, "evaluation-network", 0, repeat, device=self.device),
                stream=generator(seed, "evaluation-training", 0, repeat, device=self.device),
                on_epoch=lambda epoch, loss: progress.update(epoch),
            )
        return trainer.accuracy(self.test)


def _names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",") if name.strip())
