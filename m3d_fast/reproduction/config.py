"""Settings of a reproduction: its own, and those of its comparisons."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..command_line import to_arguments
from ..config import CondenseConfig
from ..settings import names_of, setting

# settings of the comparisons that a reproduction decides
OWN = ("methods", "out", "dataset", "ipc", "data_root", "seed")


def whole_numbers(text: str) -> tuple[int, ...]:
    """The whole numbers of ``N,N,...``."""
    return tuple(int(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings:
    """Settings that only a reproduction has; ``None`` means not given.

    Every field is a flag of ``python -m m3d_fast.reproduce``; ``--help`` explains each.
    """

    dataset: str | None = setting(
        group="reproduction",
        metavar="NAMES",
        help="data sets by commas [the table's own; those that are not at hand are listed]",
    )
    ipc: tuple[int, ...] | None = setting(
        group="reproduction",
        metavar="N,...",
        help="synthetic images per class [the table's own; with --quick the fewest]",
        parse=whole_numbers,
    )
    methods: str | None = setting(
        group="reproduction",
        metavar="NAMES",
        help="rows, written as for m3d_fast.compare [the table's own]",
    )
    quick: bool = setting(
        group="reproduction",
        help="fewer rows, short runs and evaluations, which the page states",
        default=False,
    )
    out: str | None = setting(
        group="reproduction",
        metavar="DIR",
        help="folder of TABLE.json, TABLE.html and the run folders [runs/reproduce; with --quick "
        "runs/reproduce-quick]",
    )
    data_root: str | None = setting(
        group="reproduction",
        metavar="DIR",
        help="folder that holds the data set, or a folder for each, of its name",
    )
    seed: int | None = setting(
        group="reproduction", metavar="N", help="of runs and evaluations", default=0
    )


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig(ReproduceSettings):
    """Settings of a reproduction.

    Attributes:
        table: a key of ``TABLES``.
        compare: further settings of the comparisons, of their runs and evaluations, by name: flags
            of ``python -m m3d_fast.compare``. What is not given takes the table's, then the
            method's.
    """

    table: str
    compare: Mapping[str, Any] = field(default_factory=dict)


def command_of(config: ReproduceConfig) -> str:
    """The command line that has these settings."""
    own = ReproduceSettings(**{name: getattr(config, name) for name in names_of(ReproduceSettings)})
    given = {name: value for name, value in config.compare.items() if value is not None}
    of_runs = {name: given.pop(name) for name in names_of(CondenseConfig) if name in given}
    words = [config.table, *to_arguments(own), *to_arguments(CondenseConfig(**of_runs))]
    for name, value in given.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        words.append(f"--{name.replace('_', '-')}={text}")
    return f"python -m m3d_fast.reproduce {shlex.join(words)}"
