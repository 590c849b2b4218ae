"""Evaluate a condensed set: train networks on it and on baselines, test them on real images.

Only this module reads test images.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..common.checks import check_name, check_positive
from ..common.errors import UserError
from ..common.files import hash_files
from ..common.hardware import (
    check_precision,
    compile_pays,
    default_precision,
    resolve_device,
    use_device,
)
from ..distributed import Ranks, join_ranks
from ..loaders import CACHES, LOADERS, RealImages
from ..networks import build_network
from ..networks.borrowed import Borrowed
from ..run.environment import describe_environment
from ..run.folder import RunFolder
from .config import BASELINES, PLAIN, TEST_SPLITS, WHOLE, EvaluateConfig
from .protocols import Protocol, protocol_for
from .results import Results
from .runner import Setup
from .scheduler import Scheduler
from .scores import find_counterpart
from .set_file import SetFile, is_set
from .teacher import TRAINED
from .teaching import Teaching
from .training_sets import TrainingSets

SELECTION = {
    "test": "last iterate; no test image was seen before this evaluation",
    "held-out": "last iterate; tested on held-out training images, no test image was read",
}


def evaluate(
    run: str | Path,
    config: EvaluateConfig | None = None,
    *,
    dataset: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Train networks on a run's condensed set, its initialisation and baselines; test them.

    ``evaluation.json`` in the run folder is written after every network; networks that it already
    holds, under the same protocol, are not trained again. Under torchrun each rank trains some of
    the networks; the results are those of one process.

    Args:
        run: the run folder, or a condensed set in a file or folder of any format that
            :meth:`SyntheticSet.load` reads; that has no initialisation.
        config: settings; None takes the published protocol's value.
        dataset: of a file, whose test images count; None for that named in it.
        out: of a file, the folder of the results; None for that of the file.

    Returns:
        The content of ``evaluation.json``: accuracies as fractions of 1, ``std`` as the sample
        standard deviation over networks (None for one).

    Raises:
        UserError: for invalid settings, files or data.
        RankLost: if another rank of the job is gone.
    """
    with join_ranks() as ranks:
        with ranks.together():
            subject = find_subject(Path(run), dataset, out)
        return evaluate_subject(subject, config or EvaluateConfig(), ranks)


def evaluate_subject(
    folder: RunFolder | SetFile, settings: EvaluateConfig, ranks: Ranks
) -> dict[str, Any]:
    """Evaluate a run or a set, as :func:`evaluate`, with these ranks."""
    with ExitStack() as stack:
        with ranks.together():
            stack.enter_context(folder.lock)
            folder.load_config()  # raises where it is no run folder
            if ranks.leads:
                folder.lock.check_free()
        # the first rank may pack the test images for the others
        evaluation = ranks.leader_first(lambda: Evaluation(folder, settings, ranks))
        with ranks.together():
            if ranks.leads:  # only now: invalid input leaves the folder unchanged
                if isinstance(folder, SetFile):
                    folder.prepare()
                folder.lock.acquire()
        with ranks.together():
            plain = settings.augment == PLAIN
            usual = folder.evaluation_file
            file = find_counterpart(usual, plain=False) if plain else usual
            other = find_counterpart(file, plain=plain)
            results = Results(file, evaluation.describe(), other)
        with use_device(str(evaluation.device)):
            evaluation.complete(results)
        with ranks.together():
            if results.update_scores() and ranks.leads:
                results.save()
    return results.content


def find_subject(path: Path, dataset: str | None, out: str | None) -> RunFolder | SetFile:
    """What is evaluated: a run folder, or a set in any format."""
    run = RunFolder(path)
    if path.exists() and not run.config_file.exists() and (dataset or is_set(path)):
        return SetFile(path, dataset, out)
    if dataset is not None or out is not None:
        raise UserError(
            f"{path}: expected the file of a condensed set beside --dataset and --out; a run "
            f"folder has both"
        )
    return run


class Evaluation:
    """Trains and tests the networks of one evaluation.

    Args:
        run: folder of a finished condensation, or the file of a set.
        config: settings; None takes the published protocol's value.
        ranks: those of the job.

    Raises:
        UserError: for invalid settings, files or data.
    """

    def __init__(self, run: RunFolder | SetFile, config: EvaluateConfig, ranks: Ranks) -> None:
        self.run, self.config, self.ranks = run, config, ranks
        self.settings = run.load_config()
        self.synthetic = run.load_set()
        self.networks = _split_names(config.networks or self.settings.network)
        baselines = _split_names(config.baselines)
        for name in baselines:
            check_name("baselines", name, BASELINES)
        check_name("split", config.split, TEST_SPLITS)
        if config.split == "held-out" and not self.settings.hold_out:
            raise UserError(
                "split held-out: the run held no image out; expected one condensed with --hold-out"
            )
        # a coreset is among the real images that a run would start from
        started = isinstance(run, RunFolder) and not self.settings.selects
        initial = ("initial",) if config.initial and started else ()
        self.methods = tuple(dict.fromkeys((*baselines, *initial, self.settings.method)))
        self.device = torch.device(ranks.select_device(resolve_device(config.device)))
        self.precision = config.precision or default_precision(str(self.device))
        check_precision(self.precision, str(self.device))
        check_name("loader", config.loader or self.settings.loader, LOADERS)
        check_name("cache", config.cache or self.settings.cache, CACHES)
        if config.workers is not None:
            check_positive("workers", config.workers)
        channels, self.size = self.synthetic.images.shape[1:3]
        built = {  # raises where one cannot take the images
            name: build_network(name, channels, self.size, self.synthetic.num_classes)
            for name in self.networks
        }
        # their many layers compile for minutes: vit-tiny took 5, to train 1.2 times faster (CPU)
        borrowed = {name for name, network in built.items() if isinstance(network, Borrowed)}
        self._eager = frozenset(borrowed if config.compile is None else ())
        self.protocol = self._choose_protocol()
        self.test: RealImages = self._open_later(config.split)()
        self.synthetic = self.synthetic.with_classes(self.test.class_names, "the condensed set")
        self.teaching = self._choose_labels()
        self.setup = self._choose_setup()
        sets = TrainingSets(
            self.settings, self.synthetic, lambda: self.train, config.seed, self.teaching
        )
        self._scheduler = Scheduler(
            self.setup,
            sets,
            self.test,
            lambda: self.train,
            partial(self._open_later, config.split),
            self._count_images,
        )

    @cached_property
    def train(self) -> RealImages:
        """Training images, for the baselines and the initialisation; opened when first used.

        But for all of them as a training set, of networks or a teacher, they are read at most
        twice: none is kept in memory, and nothing is packed for it.
        """
        teacher = self.config.teacher or ""
        whole = WHOLE in self.methods or teacher.partition(":")[0] == TRAINED
        return self._open_later("train", sparse=not whole)()

    def _choose_protocol(self) -> Protocol:
        decoded = self.synthetic.ipc * self.synthetic.factor**2
        protocol = protocol_for(
            self.settings.dataset,
            self.size,
            decoded,
            self.synthetic.num_classes,
            self.config.protocol,
        )
        if self.config.epochs is not None:
            check_positive("epochs", self.config.epochs)
            protocol = replace(protocol, epochs=self.config.epochs)
        if self.config.whole_epochs is not None:
            check_positive("whole_epochs", self.config.whole_epochs)
        if self.config.augment is not None:
            check_name("augment", self.config.augment, (PLAIN,))
            protocol = replace(protocol, augment=PLAIN, cutmix=0.0)
        if self.config.repeats is not None:
            check_positive("repeats", self.config.repeats)
            protocol = replace(protocol, repeats=self.config.repeats)
        return protocol

    def _open_later(self, split: str, **given: Any) -> Callable[[], RealImages]:
        """A function that opens a split, also in another process."""
        config = self.config
        settings: dict[str, Any] = {
            "root": config.data_root,
            "size": self.size,
            "device": self.device,
            "loader": config.loader,
            "cache": config.cache,
            "workers": config.workers,
        }
        return partial(self.settings.open_images, split, **(settings | given))

    def _choose_labels(self) -> Teaching:
        results = self.run.evaluation_file
        return Teaching(
            self.config,
            self.protocol,
            self.synthetic,
            methods=self.methods,
            own=self.settings.method,
            dataset=self.settings.dataset,
            network=self.settings.network,
            open_train=lambda: self.train,
            device=self.device,
            precision=self.precision,
            labels_file=results.with_name(f"{results.stem}.soft_labels.safetensors"),
            synthetic_sha256=self._synthetic_sha256,
        )

    @cached_property
    def _synthetic_sha256(self) -> str:
        return hash_files(self.run.synthetic_file)

    def _choose_setup(self) -> Setup:
        """What all networks have in common."""
        synthetic = self.synthetic
        channels, height, width = synthetic.images.shape[1:]
        return Setup(
            protocol=self.protocol,
            image_shape=(channels, height, width),
            num_classes=synthetic.num_classes,
            mean=tuple(synthetic.mean),
            std=tuple(synthetic.std),
            device=self.device,
            precision=self.precision,
            compiled=frozenset(filter(self._is_compiled, self.methods)),
            eager=self._eager,
            seed=self.config.seed,
            whole_epochs=self.config.whole_epochs,
            lock=self.run.config_file,
            teacher=self.teaching.at_work,
        )

    def _is_compiled(self, method: str) -> bool:
        """Whether a method's networks are compiled: as set, or where their work is worth it.

        The run's own and those of its initial images share what is compiled. Borrowed networks are
        not, unless set.
        """
        if self.config.compile is not None:
            return self.config.compile
        own = self.settings.method if method == WHOLE else method
        sharing = 2 if own not in BASELINES and "initial" in self.methods else 1
        networks = sharing * self.protocol.repeats
        return compile_pays(
            self.size,
            embedded=networks * sum(self.test.class_sizes),
            trained=networks * self._count_images(own) * self.protocol.epochs,
        )

    def _count_images(self, method: str) -> int:
        """Size of a method's training set."""
        if method == WHOLE:
            return sum(self.train.class_sizes)
        synthetic = self.synthetic
        if method in BASELINES:
            return synthetic.num_classes * synthetic.stored_per_class
        return len(synthetic.images) * synthetic.factor**2

    def describe(self) -> dict[str, Any]:
        """The content of ``evaluation.json``, without results."""
        protocol = asdict(self.protocol) | {"seed": self.config.seed, "precision": self.precision}
        protocol |= self.teaching.describe() | {"split": self.config.split}
        del protocol["repeats"]
        protocol["milestones"] = list(protocol["milestones"])
        return {
            "protocol": protocol,
            "selection": SELECTION[self.config.split],
            "dataset": self.settings.dataset,
            "ipc": self.synthetic.stored_per_class,
            "factor": self.synthetic.factor,
            "method": self.settings.method,
            "condensation_seconds": self.run.condensation_seconds(),
            "pretraining_seconds": self.run.pretraining_seconds(),
            "image_bytes": self.synthetic.stored_bytes,
            "hard_label_bytes": self.synthetic.labels.numel() * self.synthetic.labels.itemsize,
            "test_images": sum(self.test.class_sizes),  # of the split
            "synthetic_sha256": self._synthetic_sha256,
            "label_bytes": self.teaching.label_bytes,  # of stored soft labels
            "environment": describe_environment(),
        }

    def complete(self, results: Results) -> None:
        """Add the networks that are missing in ``results``, one per rank at a time."""
        ranks = self.ranks
        with ranks.together():
            if ranks.leads:
                results.set_outdated_aside()
        results.drop_others(WHOLE, self.setup.epochs_of(WHOLE))
        missing = results.find_missing(self.methods, self.networks, self.protocol.repeats)
        if any(task.method != self.settings.method for task in missing):
            ranks.leader_first(lambda: self.train)
        if missing:
            ranks.leader_first(self.teaching.prepare)
        # a long one that begins at the end leaves other processes idle
        missing.sort(key=self._scheduler.count_work, reverse=True)
        own = missing[ranks.rank :: ranks.size]
        with closing(self._scheduler.train(own, bar=ranks.leads)) as outcomes:
            # several ranks exchange results after each has trained as many as it does at once
            at_once = (
                1 if ranks.size == 1 else min(ranks.gather(self._scheduler.count_at_once(own)))
            )
            for start in range(0, len(missing), ranks.size * at_once):
                block = missing[start : start + ranks.size * at_once]
                with ranks.together():
                    trained = list(islice(outcomes, len(block[ranks.rank :: ranks.size])))
                everyone = [outcome for part in ranks.gather(trained) for outcome in part]
                everyone.sort(key=lambda outcome: block.index(outcome.task))
                for outcome in everyone:
                    results.add(outcome)
                results.arrange(self.methods, self.networks)
                with ranks.together():
                    if ranks.leads:
                        results.save()
                results.log_known(everyone, self.protocol.repeats)


def _split_names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",") if name.strip())
