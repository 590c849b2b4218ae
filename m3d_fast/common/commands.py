"""How a command starts and ends: parser, error messages, exit status."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from .errors import RankLost, UserError
from .processes import rank_of_process

FIRST_RANK_SECONDS = 10.0  # that the other ranks leave the first one to print an error

DONE, INVALID_INPUT, RANK_LOST, INTERRUPTED = 0, 2, 3, 130  # exit statuses


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and exit."""
        print_error(f"{self.prog}: {message}; see --help")
        self.exit(INVALID_INPUT)


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments and run ``command``; print an expected error as one sentence.

    Args:
        parser: of the command; its help is printed when there are no arguments.
        command: takes the parsed arguments.
        arguments: those of the process unless given.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words:
        parser.print_help()
        return DONE
    namespace = parser.parse_args(words)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr, force=True)
    try:
        command(namespace)
    except UserError as error:
        print_error(f"{parser.prog}: {error}")
        return INVALID_INPUT
    except RankLost as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")  # every rank: the first may be lost
        return RANK_LOST
    except KeyboardInterrupt as interruption:
        if rank_of_process() == 0:
            message = str(interruption) or "interrupted; finished work is kept in the run folder"
            sys.stderr.write(f"{message}\n")
        return INTERRUPTED
    return DONE


def print_error(message: str) -> None:
    """Print one line to stderr; of several ranks, which have the same errors, the first prints."""
    if rank_of_process() == 0:
        sys.stderr.write(f"{message}\n")
    else:
        # torchrun stops all ranks when one exits: the first has to print before that
        time.sleep(FIRST_RANK_SECONDS)
