"""``python -m m3d_fast.continual``: class-incremental learning with condensed sets as memory."""

import argparse
import sys

from .command_line import CallableModule, add_settings
from .common.commands import Parser, run_command
from .common.hardware import keep_freed_memory
from .incremental.config import ContinualConfig
from .incremental.experiment import learn_continually
from .incremental.results import table

sys.modules[__name__].__class__ = CallableModule

DESCRIPTION = """\
Class-incremental learning: classes come in groups, and at each step a new network is trained on the
condensed images of all classes seen so far and tested on the test images of these classes.

  python -m m3d_fast.continual runs/M3D runs/DM --steps 5
  python -m m3d_fast.continual runs/RUN FILE.safetensors --steps 10 --random

Writes continual.json after every network and continual.png after every order of the classes, and
prints the table: mean and standard deviation over the orders. The same command goes on where it was
interrupted. What is not given takes the published protocol's value. Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.continual",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sets",
        metavar="RUN_OR_SET",
        nargs="+",
        help="run folders, or sets that evaluate takes, of one data set",
    )
    add_settings(parser, ContinualConfig)
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Run one experiment and print its table."""
    settings = vars(arguments)
    sets = settings.pop("sets")
    sys.stdout.write(table(learn_continually(sets, ContinualConfig(**settings))) + "\n")


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    keep_freed_memory()  # of this process: main() may run in another one
    sys.exit(main())
