"""Which of torchrun's processes is this one?"""

import os


def rank_of_process() -> int:
    """Rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def processes_on_machine() -> int:
    """Number of processes that torchrun started on this machine; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
