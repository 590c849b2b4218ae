"""Accuracy over the iterations of a run: its snapshots under one protocol."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import replace_atomically, write_json
from ..distributed import join_ranks
from ..run.folder import RunFolder
from .config import EvaluateConfig
from .evaluator import evaluate_subject
from .pictures import save_lines
from .results import align, format_percent, name_accuracy

log = logging.getLogger("m3d_fast")

FILE, PICTURE = "snapshots.json", "snapshots.png"  # in the run folder
INITIAL = "initial"


class Snapshot(RunFolder):
    """The run as it was after an iteration: its results stand beside the snapshot's file."""

    def __init__(self, path: Path, file: Path) -> None:
        super().__init__(path)
        self.synthetic_file, self.iteration = file, int(file.stem)
        self.evaluation_file = file.with_name(f"{file.stem}.evaluation.json")

    def condensation_seconds(self) -> float:
        """Time spent until then, to the line of the metrics before it."""
        lines = self.read_metrics()
        return float(sum(x["seconds"] for x in lines if x["iteration"] <= self.iteration))


def evaluate_snapshots(run: str | Path, config: EvaluateConfig | None = None) -> dict[str, Any]:
    """Evaluate every snapshot of a run, its initialisation and its result under one protocol.

    After every one of them ``snapshots.json`` and ``snapshots.png`` are written in the run folder;
    networks that are there, beside each snapshot, are not trained again.

    Args:
        run: folder of a run that was condensed with ``snapshot_every``.
        config: settings; None takes the published protocol's value.

    Returns:
        The content of ``snapshots.json``: under ``results`` the accuracies per iteration and
        network, as in ``evaluation.json``.

    Raises:
        UserError: for invalid settings, files or data.
    """
    folder, settings = RunFolder(run), config or EvaluateConfig()
    folder.load_config()  # raises where it is no run folder
    files = sorted((folder.path / "snapshots").glob("[0-9]*.safetensors"))
    if not files:
        raise UserError(
            f"snapshots: {folder.path} has none; condense with --snapshot-every to keep some"
        )
    if settings.baselines:
        raise UserError(
            f"snapshots: expected no --baselines, which do not change with the iterations, got "
            f"{settings.baselines}; evaluate the run itself with them"
        )
    of_snapshots = replace(settings, initial=False)
    last = folder.load_set().info["iterations"]
    earlier = [Snapshot(folder.path, file) for file in files if int(file.stem) < last]
    content: dict[str, Any] = {}
    with join_ranks() as ranks:
        for number, subject in enumerate([folder, *earlier]):
            log.info("%d of %d: %s", number + 1, len(earlier) + 1, subject.synthetic_file.name)
            own = settings if subject is folder else of_snapshots
            evaluated = evaluate_subject(subject, own, ranks)
            iteration = subject.iteration if isinstance(subject, Snapshot) else last
            content.setdefault("protocol", evaluated["protocol"])
            for name in ("dataset", "ipc", "factor", "method", "selection", "environment"):
                content.setdefault(name, evaluated[name])
            found = content.setdefault("results", [])
            found += _collect(evaluated, iteration)
            found.sort(key=lambda result: (result["network"], result["iteration"]))
            with ranks.together():
                if ranks.leads:
                    _save(content, folder.path)
    return content


def _collect(evaluated: Mapping[str, Any], iteration: int) -> list[dict[str, Any]]:
    """The results of one evaluation, of the initial images as those of iteration 0."""
    found = []
    for result in evaluated["results"]:
        if result["method"] not in (evaluated["method"], INITIAL):
            continue  # of earlier evaluations
        started = result["method"] == INITIAL
        point = {"iteration": 0 if started else iteration, "network": result["network"]}
        point["condensation_seconds"] = 0.0 if started else evaluated["condensation_seconds"]
        found.append(point | {name: result[name] for name in ("accuracies", "mean", "std")})
    return found


def _save(content: Mapping[str, Any], folder: Path) -> None:
    write_json(folder / FILE, content)
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for result in content["results"]:
        lines.setdefault(result["network"], []).append((result["iteration"], result))
    title = f"{content['dataset']}, {content['method']}, ipc {content['ipc']}"
    with replace_atomically(folder / PICTURE) as temporary:
        save_lines(lines, temporary, across="iteration", title=title)


def table(content: Mapping[str, Any]) -> str:
    """The results as text, a row per network and iteration."""
    accuracy = name_accuracy(content["protocol"])
    rows = [("network", "iteration", accuracy, "networks")]
    for result in content["results"]:
        numbers = format_percent(result), str(len(result["accuracies"]))
        rows.append((result["network"], str(result["iteration"]), *numbers))
    return align(rows)
