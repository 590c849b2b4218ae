"""What is raised when something about the data is wrong?"""


class DataError(ValueError):
    """Data are missing, damaged or asked for wrongly.

    The message is one sentence for the user: what was expected, what was found, what to do.
    The command lines print it on stderr and leave with status 2.
    """
