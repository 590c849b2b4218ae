"""``python -m m3d_fast.moments``: how far are condensed sets from the real images?"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .analysis.comparison import Comparison, compare_runs, describe_all
from .analysis.config import MomentsConfig
from .analysis.pictures import save_bars, save_tsne
from .analysis.statistics import MEASURES
from .command_line import add_settings
from .common.commands import Parser, run_command
from .common.errors import UserError
from .common.files import write_json

log = logging.getLogger("m3d_fast")

DESCRIPTION = """\
Compare runs' condensed sets, and their initial images, with the real training images: distances of
the first three moments of features and of the style of feature maps, under random networks.

  python -m m3d_fast.moments runs/RUN
  python -m m3d_fast.moments runs/RUN1 runs/RUN2 --out comparison

Writes moments.json, moments.png and tsne.png, and prints the table. Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.moments",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUN_DIR", nargs="+", help="run folder of a finished condensation"
    )
    add_settings(parser, MomentsConfig)
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Compare, write the files and print the table."""
    settings = vars(arguments)
    runs = settings.pop("runs")
    config = MomentsConfig(**settings)
    for folder in [config.out] if config.out else runs:
        _check_folder(Path(folder), make=bool(config.out))
    comparisons = compare_runs(runs, config)
    if config.out:
        save(comparisons, Path(config.out), config)
    else:
        for comparison in comparisons:
            save([comparison], comparison.run.path, config)
    sys.stdout.write(table(comparisons) + "\n")


def _check_folder(folder: Path, *, make: bool) -> None:
    """Refuse, before any work, a folder that cannot be written."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"out: {folder} cannot be made ({reason}); give another --out") from error
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(f"{folder} is not writable; give an --out that is")


def save(comparisons: Sequence[Comparison], folder: Path, config: MomentsConfig) -> None:
    """Write ``moments.json``, ``moments.png`` and ``tsne.png`` into ``folder``."""
    save_bars(comparisons, folder / "moments.png")
    if config.tsne:
        save_tsne(comparisons, folder / "tsne.png", config.seed)
    write_json(folder / "moments.json", describe_all(comparisons, config))
    log.info("table and pictures: %s", folder)


def table(comparisons: Sequence[Comparison]) -> str:
    """Distances as text, a row per run and set: mean and deviation over networks."""
    rows = [("run", "images", *(measure.replace("_", " ") for measure in MEASURES))]
    for comparison in comparisons:
        for name, measures in comparison.describe()["distances"].items():
            cells = [_format(**measures[measure]) for measure in MEASURES]
            rows.append((comparison.run.path.name, name, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _format(mean: float, std: float | None) -> str:
    return f"{mean:.3g}" if std is None else f"{mean:.3g} +- {std:.2g}"


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    sys.exit(main())
