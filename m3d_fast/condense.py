"""``python -m m3d_fast.condense``: condense a data set into a few images per class."""

import argparse
import sys

from .command_line import CallableModule, add_settings
from .common.commands import Parser, run_command
from .common.hardware import keep_freed_memory
from .config import CondenseConfig
from .construction import condense

sys.modules[__name__].__class__ = CallableModule

DESCRIPTION = """\
Condense a training set into a few synthetic images per class (M3D, arXiv 2312.15927).

  python -m m3d_fast.condense --dataset digits                     a first try, seconds on a CPU
  python -m m3d_fast.condense --dataset fashionmnist --ipc 10
  python -m m3d_fast.condense --dataset imagenet100 --data-root IMAGENET --ipc 10
  python -m m3d_fast.condense --out runs/RUN --resume              resume after an interruption

What is not given takes the paper's value for the data set. Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.condense",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_settings(parser, CondenseConfig)
    parser.add_argument(
        "--resume", action="store_true", help="resume from the run folder's checkpoint"
    )
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Run one condensation."""
    settings = vars(arguments)
    resume = settings.pop("resume")
    condense(CondenseConfig(**settings), resume=resume)


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    keep_freed_memory()  # of this process: main() may run in another one
    sys.exit(main())
