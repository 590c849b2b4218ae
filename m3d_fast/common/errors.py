"""Exceptions that a command prints as one sentence and turns into an exit status."""


class UserError(ValueError):
    """Invalid input: one sentence saying what was expected, what was given, and what to do.

    The commands print it to stderr and exit with status 2.
    """


class DataError(UserError):
    """Data that are missing, damaged, or other than requested."""


class RankLost(RuntimeError):
    """Another rank of the job has ended."""
