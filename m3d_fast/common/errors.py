"""Exceptions that a command line turns into one sentence and an exit status."""


class UserError(ValueError):
    """Invalid input: one sentence saying what was expected, what was given, and what to do.

    The command lines print it on stderr and exit with status 2.
    """


class DataError(UserError):
    """Data are missing, damaged, or not what was requested."""


class RankLost(RuntimeError):
    """Another rank of the job is gone."""
