"""Evaluate a condensed set: train networks on it and on baselines, test them on real images.

It is IDC's protocol (arXiv 2205.14959, used by M3D). Test images are touched here and nowhere else.
"""

import hashlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import (
    PRECISIONS,
    check_name,
    check_positive,
    compile_pays,
    default_precision,
    resolve_device,
    setting,
)
from .coreset import herding, initial_pixels, k_center, random_images
from .errors import UserError
from .files import read_json, write_json
from .loaders import RealImages, open_dataset
from .networks import NETWORKS, build_network, check_network
from .presets import Protocol, protocol_for
from .progress import Progress
from .randomness import derived_seed, generator
from .run import RunFolder, environment
from .synthetic import SyntheticSet, decode
from .training import Trainer

log = logging.getLogger("m3d_fast")

BASELINES = ("random", "herding", "k-center")
SELECTION = "last iterate; no test image was seen before this evaluation"

# the network whose features herding and k-center use is trained on so many images of each class,
# for so many epochs
EXTRACTOR_IMAGES, EXTRACTOR_EPOCHS = 500, 5


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of an evaluation; ``None`` means the published protocol's value.

    Every field is a flag of ``python -m m3d_fast.evaluate``; ``--help`` explains each.
    """

    networks: str | None = setting(
        None, "protocol", "NAMES", f"trained, by commas: {', '.join(NETWORKS)} [the run's]"
    )
    repeats: int | None = setting(
        None, "protocol", "N", "networks trained per method [10; from 65 px on 3]"
    )
    epochs: int | None = setting(
        None, "protocol", "N", "passes over the decoded set [1000; from 65 px on by its size]"
    )
    baselines: str = setting("", "protocol", "NAMES", f"by commas: {', '.join(BASELINES)}")
    seed: int = setting(0, "run", "N", "one seed gives one result on one machine")
    data_root: str | None = setting(
        None, "run", "DIR", "folder that holds the data set [the run's]"
    )
    device: str | None = setting(None, "run", "NAME", "cuda, cuda:N or cpu [cuda if there is one]")
    precision: str | None = setting(
        None, "run", "NAME", "network arithmetic: bf16 or fp32 [bf16 where the hardware has it]"
    )
    compile: bool | None = setting(None, "run", "", "torch.compile the networks [when it pays]")


def evaluate(run: str | Path, config: EvaluateConfig | None = None) -> dict[str, Any]:
    """Train networks on the run's condensed set, its initialisation and baselines; test them.

    ``evaluation.json`` in the run folder is brought up to date after every network; networks it
    already holds, under the same protocol, are not trained again.

    Args:
        run: the run folder.
        config: settings; what is None takes the published protocol's value.

    Returns:
        The content of ``evaluation.json``: accuracies are fractions of 1, ``std`` is the sample
        standard deviation over networks (None for one).

    Raises:
        UserError, DataError: for settings, files or data that cannot be.
    """
    evaluation = _Evaluation(RunFolder(run), config or EvaluateConfig())
    for method in evaluation.methods:
        for network in evaluation.networks:
            evaluation.complete(method, network)
    return evaluation.content


def table(content: dict[str, Any]) -> str:
    """The results as text: test accuracy in percent, seconds to condense and to evaluate."""
    rows = [("method", "network", "test accuracy (%)", "networks", "condense (s)", "evaluate (s)")]
    for result in content["results"]:
        condensed = result["method"] == content["method"]
        rows.append(
            (
                result["method"],
                result["network"],
                _percent(result),
                str(len(result["accuracies"])),
                f"{content['condensation_seconds']:.0f}" if condensed else "",
                f"{result['seconds']:.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


class _Evaluation:
    def __init__(self, run: RunFolder, config: EvaluateConfig) -> None:
        self.run, self.config = run, config
        self.settings = run.load_config()
        self.synthetic = SyntheticSet.load(run.synthetic_file)
        self.networks = _names(config.networks or self.settings.network)
        baselines = _names(config.baselines)
        for name in baselines:
            check_name("baselines", name, BASELINES)
        for name in self.networks:
            check_network(name)
        self.methods = (*baselines, "initial", self.settings.method)
        self.device = torch.device(resolve_device(config.device))
        self.precision = config.precision or default_precision(str(self.device))
        check_name("precision", self.precision, PRECISIONS)
        self.size = self.synthetic.images.shape[-1]
        self.protocol = self._protocol()
        self.train, self.test = self._open("train"), self._open("test")
        self._check_data()
        self._trainers: dict[str, Trainer] = {}
        self.content = self._begun()

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
        root = self.config.data_root or self.settings.data_root
        name, device = self.settings.dataset, self.device
        return open_dataset(name, root, split=split, size=self.size, device=device)

    def _check_data(self) -> None:
        condensed, real = tuple(self.synthetic.class_names), self.train.class_names
        if real != condensed:
            raise UserError(
                f"the condensed set has {len(condensed)} classes ({', '.join(condensed[:3])}, ..); "
                f"the data {len(real)} ({', '.join(real[:3])}, ..); "
                f"give the --data-root the set was condensed from"
            )

    def _begun(self) -> dict[str, Any]:
        """What an earlier evaluation of the same set and protocol has already computed."""
        digest = hashlib.sha256(self.run.synthetic_file.read_bytes()).hexdigest()
        protocol = asdict(self.protocol) | {"seed": self.config.seed, "precision": self.precision}
        del protocol["repeats"]
        protocol["milestones"] = list(protocol["milestones"])
        content = {
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
            "results": [],
        }
        file = self.run.evaluation_file
        if file.exists():
            before = read_json(file)
            same = all(before.get(k) == content[k] for k in ("protocol", "synthetic_sha256"))
            if same:
                content["results"] = before["results"]
            else:
                kept = _unused(file)
                file.rename(kept)
                log.info("an evaluation under another protocol is kept as %s", kept)
        return content

    def complete(self, method: str, network: str) -> None:
        """Train the networks of this result that are still missing."""
        result = self._result(method, network)
        accuracies: list[float] = result["accuracies"]
        missing = range(len(accuracies), self.protocol.repeats)
        if not missing:
            return
        trainer = self._trainer(network)
        make = self._sets(method, trainer)
        for repeat in missing:
            start = time.perf_counter()
            images, labels = make(repeat)
            accuracies.append(
                self._accuracy(trainer, images, labels, f"{method} {network}", repeat)
            )
            result["mean"] = statistics.fmean(accuracies)
            result["std"] = statistics.stdev(accuracies) if len(accuracies) > 1 else None
            result["seconds"] += time.perf_counter() - start
            result["training_images"] = len(images)
            write_json(self.run.evaluation_file, self.content)
        log.info("%s, %s: test accuracy %s %%", method, network, _percent(result))

    def _result(self, method: str, network: str) -> dict[str, Any]:
        for result in self.content["results"]:
            if (result["method"], result["network"]) == (method, network):
                return result
        empty = {"method": method, "network": network, "accuracies": [], "seconds": 0.0}
        self.content["results"].append(empty)
        return empty

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

    def _sets(self, method: str, trainer: Trainer) -> Callable[[int], tuple[Tensor, Tensor]]:
        """The training set of ``method`` for each repeat."""
        ipc, factor = self.synthetic.ipc, self.synthetic.factor
        if method == self.settings.method:
            fixed = self.synthetic.images.to(self.device).unflatten(0, (-1, ipc))
            return lambda repeat: _labelled(decode(fixed, factor))
        if method == "initial":
            fixed = initial_pixels(self.train, self.settings)
            return lambda repeat: _labelled(decode(fixed, factor))
        if method == "random":
            # another choice for every network: the spread is that of the baseline
            seed = self.config.seed
            return lambda repeat: _labelled(
                random_images(self.train, ipc, derived_seed(seed, "coreset", 1, repeat)).float()
                / 255
            )
        rule = {"herding": herding, "k-center": k_center}[method]
        chosen = rule(self.train, ipc, self._extractor(trainer)).float() / 255
        return lambda repeat: _labelled(chosen)

    def _random(self, repeat: int) -> Tensor:
        seed = derived_seed(self.config.seed, "coreset", 1, repeat)
        return random_images(self.train, self.synthetic.ipc, seed).float() / 255

    def _extractor(self, trainer: Trainer) -> Callable[[Tensor], Tensor]:
        """Features of the network after a short training on real training images."""
        seed = self.config.seed
        per_class = min(EXTRACTOR_IMAGES, *self.train.class_sizes)
        images = random_images(self.train, per_class, derived_seed(seed, "coreset", 2))
        extractor = Trainer(
            trainer.network,
            replace(self.protocol, epochs=EXTRACTOR_EPOCHS),
            self.synthetic.mean,
            self.synthetic.std,
            device=self.device,
            precision=self.precision,
            compile=False,
        )
        float_images, labels = _labelled(images.float() / 255)
        with Progress(
            "features for the coreset", EXTRACTOR_EPOCHS, images_per_step=len(labels)
        ) as progress:
            extractor.fit(
                float_images,
                labels,
                initial=generator(seed, "evaluation-network", 1, device=self.device),
                stream=generator(seed, "evaluation-training", 1, device=self.device),
                on_epoch=lambda epoch, loss: progress.update(epoch),
            )
        return extractor.embed

    def _accuracy(
        self, trainer: Trainer, images: Tensor, labels: Tensor, name: str, repeat: int
    ) -> float:
        seed, epochs = self.config.seed, self.protocol.epochs
        with Progress(name, epochs, images_per_step=len(images)) as progress:
            trainer.fit(
                images,
                labels,
                initial=generator(seed, "evaluation-network", 0, repeat, device=self.device),
                stream=generator(seed, "evaluation-training", 0, repeat, device=self.device),
                on_epoch=lambda epoch, loss: progress.update(epoch),
            )
        return trainer.accuracy(self.test)


def _labelled(images: Tensor) -> tuple[Tensor, Tensor]:
    """``(C, n, channels, H, W)`` to a flat training set."""
    classes, count = images.shape[:2]
    labels = torch.arange(classes, device=images.device).repeat_interleave(count)
    return images.flatten(0, 1), labels


def _names(joined: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in joined.split(",") if name.strip())


def _unused(file: Path) -> Path:
    def candidates() -> Iterator[Path]:
        number = 1
        while True:
            yield file.with_name(f"{file.stem}-{number}{file.suffix}")
            number += 1

    return next(path for path in candidates() if not path.exists())


def _percent(result: dict[str, Any]) -> str:
    spread = "" if result["std"] is None else f" +- {100 * result['std']:.2f}"
    return f"{100 * result['mean']:.2f}{spread}"
