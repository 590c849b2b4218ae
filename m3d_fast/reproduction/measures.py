"""What a reproduction measures beside accuracy: distances of moments, accuracy over iterations."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..analysis.comparison import compare_runs, describe_all
from ..analysis.config import MomentsConfig
from ..common.files import read_json, write_json
from ..evaluation.config import EvaluateConfig
from ..evaluation.evaluator import evaluate
from ..run.folder import RunFolder

log = logging.getLogger("m3d_fast")


def measure_moments(runs: Sequence[Path], config: MomentsConfig) -> dict[Path, dict[str, Any]]:
    """Distances to the training images of every run's condensed set.

    They are kept in the runs' ``moments.json``; runs that have one are not measured again.

    Args:
        runs: folders of finished runs of one data set.
        config: settings, without a t-SNE.

    Returns:
        By run, and measure: mean and standard deviation over random networks.

    Raises:
        UserError: for a file that is no ``moments.json``, or invalid data.
    """
    missing = [run for run in runs if not (run / "moments.json").exists()]
    for run, result in zip(missing, compare_runs(missing, config) if missing else (), strict=True):
        write_json(run / "moments.json", describe_all([result], config))
    return {run: read_json(run / "moments.json")["runs"][0]["distances"] for run in runs}


def measure_curve(path: Path, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Accuracy of a run's snapshots, which networks that are not there yet are trained on.

    Returns:
        By iteration, network and snapshot: ``iteration``, ``network``, ``accuracies``, ``mean``
        and ``std``, fractions of 1.

    Raises:
        UserError: for damaged files.
    """
    settings, points = RunFolder(path).load_config(), []
    for file in sorted((path / "snapshots").glob("*.safetensors")):
        log.info("%s after %d iterations", path, int(file.stem))
        for result in evaluate(file, config, dataset=settings.dataset)["results"]:
            names = ("network", "accuracies", "mean", "std")
            points.append({"iteration": int(file.stem)} | {name: result[name] for name in names})
    return points


def read_losses(path: Path) -> list[tuple[int, float]]:
    """Iterations and losses of a run, from its ``metrics.jsonl``; none of a coreset."""
    file = path / "metrics.jsonl"
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(line["iteration"], line["loss"]) for line in lines if line["loss"] is not None]
