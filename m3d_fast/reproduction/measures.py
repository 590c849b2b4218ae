"""What a reproduction measures beside accuracy: distances of moments, accuracy over iterations."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..analysis.comparison import compare_runs, describe_all
from ..analysis.config import MomentsConfig
from ..common.files import read_json, write_json
from ..evaluation.config import EvaluateConfig
from ..evaluation.snapshots import evaluate_snapshots
from ..run.folder import RunFolder


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
    """Accuracy of a run over its iterations, by its snapshots and the images it started from.

    Args:
        path: the run folder.
        config: of the evaluations; what is there is not trained again.

    Returns:
        By network and iteration: ``iteration``, ``network``, ``accuracies``, ``mean``, ``std``.

    Raises:
        UserError: for damaged files, or a run without snapshots.
    """
    results: list[dict[str, Any]] = evaluate_snapshots(path, replace(config, initial=True))[
        "results"
    ]
    return results


def read_losses(path: Path) -> list[tuple[int, float]]:
    """Iterations and losses of a run; none of a coreset."""
    lines = RunFolder(path).read_metrics()
    return [(line["iteration"], line["loss"]) for line in lines if line["loss"] is not None]
