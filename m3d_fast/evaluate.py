"""``python -m m3d_fast.evaluate``: train networks on a condensed set and test them."""

import argparse
import logging
import sys
from pathlib import Path

from .command_line import CallableModule, add_settings
from .common.commands import Parser, run_command
from .common.errors import UserError
from .common.hardware import keep_freed_memory
from .common.processes import rank_of_process
from .evaluation.config import EvaluateConfig
from .evaluation.evaluator import evaluate
from .evaluation.results import describe_size, table
from .evaluation.scores import name_missing
from .evaluation.set_file import is_set
from .evaluation.snapshots import evaluate_snapshots
from .evaluation.snapshots import table as table_of_snapshots

sys.modules[__name__].__class__ = CallableModule

log = logging.getLogger("m3d_fast")

DESCRIPTION = """\
Train networks on a run's condensed set, its initialisation and baselines; test on real images.

  python -m m3d_fast.evaluate runs/RUN
  python -m m3d_fast.evaluate runs/RUN --networks convnet3,resnet18 --baselines random,herding
  python -m m3d_fast.evaluate runs/RUN --protocol soft --teacher resnet18:WEIGHTS.pt
  python -m m3d_fast.evaluate runs/RUN --snapshots
  python -m m3d_fast.evaluate --set FILE.safetensors --dataset fashionmnist

Results go to RUN/evaluation.json, or FILE.evaluation.json, after every network; what is already
there is not repeated. What is not given takes the published protocol's value.
Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.evaluate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "run", metavar="RUN_DIR", nargs="?", help="run folder of a finished condensation"
    )
    what.add_argument(
        "--set",
        metavar="PATH",
        help="or anybody's condensed set: .safetensors, .npz, .pt, "
        ".beton, a folder of class folders, .parquet, images.pt and labels.pt",
    )
    parser.add_argument(
        "--snapshots",
        action="store_true",
        help="evaluate the snapshots of the run as well: accuracy over iterations",
    )
    of_set = parser.add_argument_group("with --set")
    of_set.add_argument("--dataset", metavar="NAME", help="its data set [that named in the file]")
    of_set.add_argument("--out", metavar="DIR", help="folder of the results [beside the file]")
    add_settings(parser, EvaluateConfig)
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Run one evaluation and print its table."""
    settings = vars(arguments)
    run, file, dataset, out = (settings.pop(name) for name in ("run", "set", "dataset", "out"))
    if settings.pop("snapshots"):
        if run is None:
            raise UserError("snapshots: expected a run folder, got --set")
        found = evaluate_snapshots(run, EvaluateConfig(**settings))
        if rank_of_process() == 0:
            sys.stdout.write(table_of_snapshots(found) + "\n")
        return
    if file is not None and not is_set(Path(file)):
        raise UserError(f"set: {file} is not the file or folder of a condensed set")
    content = evaluate(file or run, EvaluateConfig(**settings), dataset=dataset, out=out)
    if rank_of_process() == 0:
        log.info("%s", describe_size(content))
        missing = name_missing(content)
        if missing is not None:
            log.info("%s", missing)
        sys.stdout.write(table(content) + "\n")


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    keep_freed_memory()  # of this process: main() may run in another one
    sys.exit(main())
