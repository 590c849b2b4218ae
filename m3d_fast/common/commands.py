"""How a command starts and ends: its parser, its messages, its exit status."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from .errors import RankLost, UserError
from .processes import rank_of_process

FIRST_RANK_SPEAKS = 10.0  # seconds that other ranks wait

DONE, USER_MISTAKE, RANK_LOST, INTERRUPTED = 0, 2, 3, 130  # exit statuses


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Say ``message``, once, and leave."""
        print_mistake(f"{self.prog}: {message}; see --help")
        self.exit(USER_MISTAKE)


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, run, and turn what went wrong into one sentence and an exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given:
        parser.print_help()
        return DONE
    namespace = parser.parse_args(given)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr, force=True)
    try:
        command(namespace)
    except UserError as error:
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
    return DONE


def print_mistake(message: str) -> None:
    """Write one line to stderr; of several ranks, which make the same mistakes, the first does."""
    if rank_of_process() == 0:
        sys.stderr.write(f"{message}\n")
    else:
        # torchrun ends all ranks when one ends: not before the first one has spoken
        time.sleep(FIRST_RANK_SPEAKS)
