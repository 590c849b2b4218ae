"""``python -m m3d_fast.evaluate``: train networks on a condensed set and test them."""

import argparse
import sys

from .command_line import CallableModule, add_settings
from .common.commands import Parser, run_command
from .common.processes import rank_of_process
from .evaluation.config import EvaluateConfig
from .evaluation.evaluator import evaluate
from .evaluation.results import table

sys.modules[__name__].__class__ = CallableModule

DESCRIPTION = """\
Train networks on a run's condensed set, its initialisation and baselines; test on real images.

  python -m m3d_fast.evaluate runs/RUN
  python -m m3d_fast.evaluate runs/RUN --networks convnet3,resnet18 --baselines random,herding

Results go to RUN/evaluation.json after every network; what is already there is not repeated. What
is not given takes the published protocol's value. Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.evaluate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN_DIR", help="run folder of a finished condensation")
    add_settings(parser, EvaluateConfig)
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Run one evaluation and print its table."""
    settings = vars(arguments)
    content = evaluate(settings.pop("run"), EvaluateConfig(**settings))
    if rank_of_process() == 0:
        sys.stdout.write(table(content) + "\n")


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    sys.exit(main())
