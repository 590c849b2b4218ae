"""``python -m m3d_fast.compare``: run methods and coresets, and compare them in one table."""

import argparse
import sys

from .command_line import CallableModule, add_settings
from .common.commands import Parser, run_command
from .common.hardware import keep_freed_memory
from .comparison.comparison import compare
from .comparison.config import DECIDED, OWN_ROWS, CompareSettings, split_settings
from .comparison.table import table
from .config import CondenseConfig
from .evaluation.config import EvaluateConfig
from .settings import names_of

sys.modules[__name__].__class__ = CallableModule

DESCRIPTION = """\
Compare methods and coresets on one data set: run what is missing, evaluate all under one protocol.

  python -m m3d_fast.compare --dataset digits --methods random,herding,dm,m3d
  python -m m3d_fast.compare --dataset fashionmnist --ipc 1 --budget 300 --repeats 3
  python -m m3d_fast.compare --dataset cifar10 --methods 'm3d,dm,dm[preset=m3d]' --lr-img 0.1,1,10

Every method runs in a folder of its own under --out, in which compare.json and compare.png are
written after every result. The same command goes on where it was interrupted. What is not given
takes the method's and the protocol's own value. Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.compare",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_settings(parser, CompareSettings)
    add_settings(parser, CondenseConfig, without=DECIDED)
    add_settings(parser, EvaluateConfig, without=(*OWN_ROWS, *names_of(CondenseConfig)))
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Run one comparison and print its table."""
    sys.stdout.write(table(compare(split_settings(vars(arguments)))) + "\n")


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    keep_freed_memory()  # of this process: main() may run in another one
    sys.exit(main())
