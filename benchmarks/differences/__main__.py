"""How much does each choice matter? One difference at a time, to M3D or to the strong preset.

    taskset -c 0 python -m benchmarks.differences STUDY --folder FOLDER [--out FILE] [ROW ...]

Every row condenses and trains networks with one difference to the base of the study, and is tested
on held-out training images. Some rows are other seeds of the base: what is less than they differ by
means nothing. Rows that are in ``FILE`` are not run again. Where no setting exists, the code is
changed while the row runs, in this process alone: hence one core, on which an evaluation starts no
others.
"""

import argparse
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import run_missing
from m3d_fast import CondenseConfig, EvaluateConfig, condense, evaluate
from m3d_fast.common.hardware import usable_cores

from . import m3d, strong
from .study import Study, train_by

STUDIES = {"m3d": m3d.STUDY, "strong": strong.STUDY}


def condense_row(study: Study, name: str, folder: Path) -> Path:
    """The run folder of a row's set, which is condensed unless it is there."""
    difference, run = study.rows[name], folder / "sets" / name
    if not (run / "synthetic.safetensors").exists():
        with difference.during("condensation"):
            settings = {**study.base, **difference.settings}
            condense(CondenseConfig(out=str(run), **settings), resume=True)
    return run


def run_row(study: Study, name: str, folder: Path) -> dict[str, Any]:
    """Condense and evaluate; returns the row of the file.

    Args:
        study: that has the row.
        name: of the row.
        folder: of the run folders.
    """
    difference, start = study.rows[name], time.perf_counter()
    run = folder / "evaluated" / name
    shutil.copytree(condense_row(study, difference.of or name, folder), run, dirs_exist_ok=True)
    protocol = {"epochs": study.epochs, "repeats": study.repeats} | dict(difference.protocol)
    with difference.during("evaluation"), train_by(protocol):
        found = evaluate(run, EvaluateConfig(split="held-out", initial=False))
    (result,) = found["results"]
    given = {"settings": dict(difference.settings), "protocol": dict(difference.protocol)}
    seconds = {
        "condensation_seconds": found["condensation_seconds"],
        "seconds": time.perf_counter() - start,
    }
    return given | {key: result[key] for key in ("accuracies", "mean", "std")} | seconds


def main() -> None:
    """Run what is missing, and write the file after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES, help="what the rows differ from")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all rows")
    parser.add_argument("--folder", required=True, type=Path, help="of the runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="FOLDER/STUDY.json")
    arguments = parser.parse_intermixed_args()
    study = STUDIES[arguments.study]
    unknown = [name for name in arguments.rows if name not in study.rows]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {'; '.join(study.rows)}")
    if usable_cores() > 1:
        parser.error("expected one core, got several: begin with taskset -c 0")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    file = arguments.out or arguments.folder / f"{arguments.study}.json"
    about = {
        "base": dict(study.base),
        "epochs": study.epochs,
        "repeats": study.repeats,
        "split": "held-out",
    }
    folder = arguments.folder / arguments.study
    run_missing(
        file, about, arguments.rows or study.rows, lambda name: run_row(study, name, folder)
    )


if __name__ == "__main__":
    main()
