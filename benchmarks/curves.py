"""Accuracy against iterations and against seconds of several runs, as one file and one picture.

    python -m m3d_fast.evaluate RUN_DIR --snapshots        of every run, then
    python -m benchmarks.curves RUN_DIR ... --out FILE     FILE.json and FILE.png

A line is named after its run folder. Seconds include those of training the networks of a pool; a
run that was given the result of another (``--init RUN_DIR``) begins where that one ended.
"""

import argparse
from pathlib import Path
from typing import Any

from m3d_fast.common.files import read_json, write_json
from m3d_fast.evaluation.pictures import Lines, save_panels
from m3d_fast.evaluation.snapshots import FILE
from m3d_fast.run.folder import RunFolder
from m3d_fast.starting_set import is_path

PER_RUN = ("protocol", "dataset", "ipc", "factor", "method", "selection", "environment")
PATHS = ("out", "data_root")  # settings that say nothing about the run


def find_start(run: RunFolder) -> tuple[int, float]:
    """Iterations and seconds before the run's own: a pool's, and those of ``--init RUN_DIR``."""
    init = run.load_config().init
    before = RunFolder(init)
    if not is_path(init) or not before.config_file.is_file():
        return 0, run.pretraining_seconds()
    iterations, seconds = find_start(before)
    seconds += before.condensation_seconds() + run.pretraining_seconds()
    return iterations + before.load_set().info["iterations"], seconds


def read_curve(run: Path) -> dict[str, Any]:
    """What ``evaluate --snapshots`` found, how the run was made, and seconds from its start."""
    found = read_json(run / FILE)
    folder = RunFolder(run)
    iterations, seconds = find_start(folder)
    points = [
        point
        | {
            "iteration": iterations + point["iteration"],
            "seconds": seconds + point["condensation_seconds"],
        }
        for point in found["results"]
    ]
    given = read_json(folder.config_file)["settings"]
    settings = {name: value for name, value in given.items() if name not in PATHS}
    about = {name: found[name] for name in PER_RUN}
    about |= {"iterations_before": iterations, "seconds_before": seconds, "settings": settings}
    return about | {"results": points}


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """The picture: accuracy over iterations, and over seconds."""
    panels: dict[str, Lines] = {}
    for across, key in (
        ("iteration", "iteration"),
        ("seconds, training of pools included", "seconds"),
    ):
        panels[across] = {
            name: [(point[key], point) for point in curve["results"]]
            for name, curve in curves.items()
        }
    kinds = sorted({(c["dataset"], f"ipc {c['ipc']}") for c in curves.values()})
    save_panels(panels, path, title="; ".join(map(", ".join, kinds)))


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    arguments = parser.parse_args()
    missing = [str(run) for run in arguments.runs if not (run / FILE).is_file()]
    if missing:
        parser.error(
            f"expected {FILE} in every run folder, found none in {', '.join(missing)}: "
            "python -m m3d_fast.evaluate RUN_DIR --snapshots writes it"
        )
    curves = {run.name: read_curve(run) for run in arguments.runs}
    if len(curves) < len(arguments.runs):
        parser.error(
            "expected run folders of different names, which name the lines, got "
            + ", ".join(map(str, arguments.runs))
        )
    write_json(arguments.out.with_suffix(".json"), {"runs": curves})
    draw(curves, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
