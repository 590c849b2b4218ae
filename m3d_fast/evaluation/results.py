"""The content of ``evaluation.json``: protocol, and accuracies of every method and network."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from typing import Any

from ..common.files import read_json, write_json
from .scores import SCORES, add_scores

log = logging.getLogger("m3d_fast")


@dataclass(frozen=True)
class Task:
    """One network to train and test."""

    method: str
    network: str
    repeat: int

    @property
    def row(self) -> str:
        """The row of a table that it belongs to."""
        return f"{self.method}, {self.network}"


@dataclass(frozen=True)
class Outcome:
    """The result of a task.

    Attributes:
        task: what was trained.
        accuracy: fraction of 1.
        seconds: of building the set, training and testing.
        training_images: size of the training set.
        epochs: passes over it.
    """

    task: Task
    accuracy: float
    seconds: float
    training_images: int
    epochs: int


class Results:
    """The results of an evaluation, including an earlier one under the same protocol.

    Args:
        file: ``evaluation.json``, which need not exist; read here, written by :meth:`save`.
        content: of the file, without results.
        counterpart: the file of the evaluation with the other augmentation, which need not exist.
    """

    def __init__(self, file: Path, content: dict[str, Any], counterpart: Path) -> None:
        self.file, self.content = file, content | {"results": []}
        self._counterpart = counterpart
        self._outdated = False  # whether the file is of another protocol or condensed set
        if file.exists():
            before = read_json(file)
            same = all(before.get(k) == content[k] for k in ("protocol", "synthetic_sha256"))
            self._outdated = not same
            if same:
                self.content["results"] = before["results"]

    def set_outdated_aside(self) -> None:
        """Rename the file if it is of another protocol or condensed set."""
        if self._outdated:
            names = (f"{self.file.stem}-{n}{self.file.suffix}" for n in count(1))
            kept = next(p for p in map(self.file.with_name, names) if not p.exists())
            self.file.rename(kept)
            log.info("an evaluation under another protocol is kept as %s", kept)

    def drop_others(self, method: str, epochs: int) -> None:
        """Drop the results of a method after another number of epochs."""
        self.content["results"] = [
            result
            for result in self.content["results"]
            if result["method"] != method or result["epochs"] == epochs
        ]

    def find_missing(
        self, methods: tuple[str, ...], networks: tuple[str, ...], repeats: int
    ) -> list[Task]:
        """The networks still to train, by method, network and repeat."""
        done = {(r["method"], r["network"]): len(r["accuracies"]) for r in self.content["results"]}
        return [
            Task(method, network, repeat)
            for method in methods
            for network in networks
            for repeat in range(done.get((method, network), 0), repeats)
        ]

    def add(self, outcome: Outcome) -> None:
        """Add the accuracy of one network."""
        result = self._find_or_add(outcome.task)
        accuracies: list[float] = result["accuracies"]
        assert len(accuracies) == outcome.task.repeat, "repeats are added in order"
        accuracies.append(outcome.accuracy)
        result["mean"] = statistics.fmean(accuracies)
        result["std"] = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        result["seconds"] += outcome.seconds
        result["training_images"] = outcome.training_images
        result["epochs"] = outcome.epochs

    def arrange(self, methods: tuple[str, ...], networks: tuple[str, ...]) -> None:
        """Bring the results into the order of methods and networks, others behind."""
        order = {key: place for place, key in enumerate(product(methods, networks))}
        self.content["results"].sort(
            key=lambda result: order.get((result["method"], result["network"]), len(order))
        )

    def update_scores(self) -> bool:
        """Compute the scores beside accuracy; returns whether any has changed."""
        before = [dict(result.get("scores", {})) for result in self.content["results"]]
        other = read_json(self._counterpart) if self._counterpart.exists() else None
        add_scores(self.content, other)
        return before != [result.get("scores", {}) for result in self.content["results"]]

    def save(self) -> None:
        """Write the file."""
        self.update_scores()
        write_json(self.file, self.content)

    def log_known(self, outcomes: list[Outcome], repeats: int) -> None:
        """Log the accuracy of every method and network, as it is with these outcomes."""
        split = self.content["protocol"]["split"]
        for task in dict.fromkeys(replace(outcome.task, repeat=0) for outcome in outcomes):
            result = self._find_or_add(task)
            known = len(result["accuracies"])
            count = "" if known == repeats else f" ({known} of {repeats} networks)"
            accuracy = format_percent(result)
            log.info("%s: %s accuracy %s %%%s", task.row, split, accuracy, count)

    def _find_or_add(self, task: Task) -> dict[str, Any]:
        for result in self.content["results"]:
            if (result["method"], result["network"]) == (task.method, task.network):
                return result
        empty = {
            "method": task.method,
            "network": task.network,
            "labels": self.content["protocol"]["labels"],
            "accuracies": [],
            "seconds": 0.0,
        }
        self.content["results"].append(empty)
        return empty


def table(content: dict[str, Any]) -> str:
    """The results as text: accuracy and scores in percent, seconds to construct and to evaluate.

    They are of one kind of labels, hard or soft, which the title of the accuracies names.
    """
    accuracy = name_accuracy(content["protocol"])
    results = content["results"]
    known = [
        name for name in SCORES if any(r.get("scores", {}).get(name) is not None for r in results)
    ]
    titles = [f"{SCORES[name]} (%)" for name in known]
    rows = [("method", "network", accuracy, "networks", *titles, "condense (s)", "evaluate (s)")]
    spent = (content["condensation_seconds"], content.get("pretraining_seconds"))
    for result in results:
        seconds = None if result["method"] != content["method"] else spent[0]
        scores = [result.get("scores", {}).get(name) for name in known]
        rows.append(
            (
                result["method"],
                result["network"],
                format_percent(result),
                str(len(result["accuracies"])),
                *("" if score is None else f"{100 * score:.1f}" for score in scores),
                "" if seconds is None else f"{seconds + (spent[1] or 0):.0f}",
                f"{result['seconds']:.0f}",
            )
        )
    return align(rows)


def name_accuracy(protocol: dict[str, Any]) -> str:
    """Title of a column of accuracies: hard and soft labels never share one."""
    return f"{protocol['labels']} labels, {protocol['split']} accuracy (%)"


def describe_size(content: dict[str, Any]) -> str:
    """One line: the bytes of the condensed set."""
    images, soft = content["image_bytes"], content["label_bytes"]
    labels = content["hard_label_bytes"] if soft is None else soft
    kind = "hard" if soft is None else "stored soft"
    return f"condensed set: {images:,} bytes of images and {labels:,} of {kind} labels"


def align(rows: Sequence[Sequence[str]]) -> str:
    """A table as text; the first row holds the titles of the columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def format_percent(result: dict[str, Any]) -> str:
    """Mean and standard deviation of a result, in percent."""
    spread = "" if result["std"] is None else f" +- {100 * result['std']:.2f}"
    return f"{100 * result['mean']:.2f}{spread}"
