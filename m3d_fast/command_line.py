"""What both command lines share: flags, messages, exit statuses."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any, NoReturn, get_args, get_type_hints

from .common.errors import UserError
from .distributed import RankLost, rank_of_process
from .loaders import DataError

FIRST_RANK_SPEAKS = 10.0  # seconds that other ranks wait

USER_MISTAKE, RANK_LOST, INTERRUPTED = 2, 3, 130


class CallableModule(ModuleType):
    """A module whose call is that of the function of its own name.

    Importing the module ``m3d_fast.condense`` binds it over the function ``m3d_fast.condense``.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say ``message``, once, and leave."""
        print_mistake(f"{self.prog}: {message}; see --help")
        self.exit(USER_MISTAKE)


def add_settings(parser: argparse.ArgumentParser, config: type) -> None:
    """One flag per field of the dataclass ``config``, in the groups its metadata name.

    A flag that is not given is absent from the parsed arguments.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    types = get_type_hints(config)
    for setting in fields(config):
        group = setting.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        kind = next((t for t in get_args(types[setting.name]) if t is not type(None)), None)
        kind = kind or types[setting.name]
        text = setting.metadata["help"].replace("%", "%%")
        usual = setting.metadata["usual"] if setting.default is None else setting.default
        flag: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": text if usual in (None, "") else f"{text} [{usual}]",
        }
        if kind is bool:
            flag["action"] = argparse.BooleanOptionalAction
        else:
            parse = setting.metadata.get("parse") or kind
            flag |= {"type": parse, "metavar": setting.metadata["unit"]}
        groups[group].add_argument(f"--{setting.name.replace('_', '-')}", **flag)


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, run, and turn what went wrong into one sentence and an exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        parser.print_help()
        return 0
    namespace = parser.parse_args(given)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr, force=True)
    try:
        command(namespace)
    except (UserError, DataError) as error:
        print_mistake(f"{parser.prog}: {error}")
        return USER_MISTAKE
    except RankLost as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")  # the first rank may be the lost one
        return RANK_LOST
    except KeyboardInterrupt as interruption:
        if rank_of_process() == 0:
            what = str(interruption) or "interrupted; what was finished is kept in the run folder"
            sys.stderr.write(f"{what}\n")
        return INTERRUPTED
    return 0


def print_mistake(message: str) -> None:
    """Write one line to stderr; of several ranks, which make the same mistakes, the first does."""
    if rank_of_process() == 0:
        sys.stderr.write(f"{message}\n")
    else:
        # torchrun ends all ranks when one ends: not before the first one has spoken
        time.sleep(FIRST_RANK_SPEAKS)
