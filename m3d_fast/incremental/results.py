"""The results of class-incremental learning: a file, a picture, a table."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from ..common.files import read_json, replace_atomically, write_json
from ..evaluation.pictures import save_lines
from ..evaluation.results import align, format_percent

log = logging.getLogger("m3d_fast")

FILE, PICTURE = "continual.json", "continual.png"


class Results:
    """The results, including earlier ones of the same experiment.

    Sets may be added to an experiment, and orders of classes; results of a set whose file or
    protocol has changed are dropped, and an experiment of other settings is set aside.

    Args:
        folder: of the files.
        content: of the file, without results.
    """

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self._folder, self.content = folder, content | {"results": []}
        file = folder / FILE
        if not file.exists():
            return
        before = read_json(file)
        fixed = ("dataset", "size", "network", "steps", "seed", "precision")
        if any(before.get(name) != content[name] for name in fixed):
            names = (f"{file.stem}-{n}{file.suffix}" for n in count(1))
            kept = next(path for path in map(folder.joinpath, names) if not path.exists())
            file.rename(kept)
            log.info("an experiment of other settings is kept as %s", kept)
            return
        for name in ("sets", "protocols"):
            content[name] = before[name] | content[name]
            self.content[name] = content[name]
        self.content["results"] = [
            result
            for result in before["results"]
            if all(
                before[name].get(result["set"]) == content[name].get(result["set"])
                for name in ("sets", "protocols")
            )
        ]

    def find_missing(
        self, sets: Sequence[str], orders: int, steps: int
    ) -> set[tuple[str, int, int]]:
        """Set, order and step of the networks still to train."""
        done = {
            (result["set"], order): len(accuracies)
            for result in self.content["results"]
            for order, accuracies in enumerate(result["orders"])
        }
        return {
            (name, order, step)
            for name in sets
            for order in range(orders)
            for step in range(done.get((name, order), 0), steps)
        }

    def add(self, name: str, order: int, accuracy: float) -> None:
        """Add the accuracy of the next step of an order; write the file, and then its picture."""
        found = [result for result in self.content["results"] if result["set"] == name]
        result = found[0] if found else {"set": name, "orders": []}
        if not found:
            self.content["results"].append(result)
        if order == len(result["orders"]):
            result["orders"].append([])
        result["orders"][order].append(accuracy)
        _summarise(result, self.content["steps"])
        write_json(self._folder / FILE, self.content)
        if len(result["orders"][order]) == self.content["steps"]:
            self._draw()

    def _draw(self) -> None:
        per_step = self.content["classes_per_step"]
        lines = {
            result["set"]: [
                ((step + 1) * per_step, point) for step, point in enumerate(result["steps"])
            ]
            for result in self.content["results"]
        }
        title = f"{self.content['dataset']}, {self.content['network']}"
        with replace_atomically(self._folder / PICTURE) as temporary:
            save_lines(lines, temporary, across="classes seen", title=title)


def _summarise(result: dict[str, Any], steps: int) -> None:
    """Mean and sample standard deviation over orders, of every step and of their average."""
    result["steps"] = []
    for step in range(steps):
        found = [accuracies[step] for accuracies in result["orders"] if step < len(accuracies)]
        if found:
            result["steps"].append(_describe(found))
    whole = [statistics.fmean(each) for each in result["orders"] if len(each) == steps]
    result["average"] = _describe(whole) if whole else None


def _describe(numbers: Sequence[float]) -> dict[str, float | None]:
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": spread}


def table(content: Mapping[str, Any]) -> str:
    """The results as text: accuracy in percent after each step, and the average of all steps."""
    per_step = content["classes_per_step"]
    seen = [f"{(step + 1) * per_step} classes (%)" for step in range(content["steps"])]
    rows = [("memory", "orders", *seen, "average (%)")]
    for result in content["results"]:
        # of a set that this command was not given, some may be missing
        lacking = [None] * (content["steps"] - len(result["steps"]))
        points = [*result["steps"], *lacking, result["average"]]
        cells = ["" if point is None else format_percent(point) for point in points]
        rows.append((result["set"], str(len(result["orders"])), *cells))
    return align(rows)
