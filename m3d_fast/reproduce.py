"""``python -m m3d_fast.reproduce``: the papers' tables and figures, ours beside the published."""

import argparse
import sys

from .command_line import add_settings
from .common.commands import Parser, run_command
from .common.errors import UserError
from .common.hardware import keep_freed_memory
from .comparison.config import DECIDED, OWN_ROWS, CompareSettings
from .config import CondenseConfig
from .evaluation.config import EvaluateConfig
from .reproduction.config import ReproduceConfig, ReproduceSettings
from .reproduction.report import write_report
from .reproduction.reproduction import Reproduction
from .reproduction.tables import TABLES
from .settings import names_of

PAGE = "page"

DESCRIPTION = """\
Make a table or figure of the papers for the data sets at hand: run what is missing, and write
TABLE.json and TABLE.html with published figures beside ours.

  python -m m3d_fast.reproduce table2 --dataset fashionmnist --quick
  python -m m3d_fast.reproduce table4 --device cuda
  python -m m3d_fast.reproduce page runs/RUN      (report.html of a run that was evaluated)

{tables}

The same command goes on where it was interrupted or killed. Flags of m3d_fast.compare change runs
and evaluations; what is not given takes the table's, the method's and the protocol's own value.
Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    tables = "\n".join(f"  {name:8} {table.title}" for name, table in TABLES.items())
    parser = Parser(
        prog="python -m m3d_fast.reproduce",
        description=DESCRIPTION.format(tables=tables),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", metavar="TABLE", help=f"{', '.join(TABLES)}; or {PAGE}")
    parser.add_argument(
        "runs", metavar="RUN_DIR", nargs="*", help=f"of {PAGE}: evaluated run folders"
    )
    own = names_of(ReproduceSettings)
    add_settings(parser, ReproduceSettings)
    add_settings(parser, CompareSettings, without=own)
    add_settings(parser, CondenseConfig, without=(*DECIDED, *own))
    add_settings(parser, EvaluateConfig, without=(*OWN_ROWS, *own, *names_of(CondenseConfig)))
    return parser


def command(arguments: argparse.Namespace) -> None:
    """Make one table and print where it is, or the pages of runs."""
    given = vars(arguments)
    table, runs = given.pop("table"), given.pop("runs")
    if table == PAGE:
        if not runs or given:
            raise UserError(f"{PAGE}: expected run folders and nothing else")
        for run in runs:
            sys.stdout.write(f"{write_report(run)}\n")
        return
    if runs:
        raise UserError(f"{table}: expected flags after it, got {' '.join(runs)}")
    own = {name: given.pop(name) for name in names_of(ReproduceSettings) if name in given}
    reproduction = Reproduction(ReproduceConfig(table=table, compare=given, **own))
    reproduction.run()
    sys.stdout.write(f"{reproduction.page}\n")


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    keep_freed_memory()  # of this process: main() may run in another one
    sys.exit(main())
