"""The ranks of a job under torchrun, each of which condenses its share of the classes.

No gradients are exchanged. Ranks exchange small host objects over gloo: whether to stop, the losses
to log, error messages. A process without torchrun is a job of one rank.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .common.errors import RankLost, UserError
from .common.processes import rank_of_process

log = logging.getLogger("m3d_fast")

Result = TypeVar("Result")

# the others wait while the first rank prepares a data set; a rank that dies is noticed at once
PATIENCE = timedelta(days=1)


class Ranks:
    """This process among those of its job.

    Args:
        rank: number of this process.
        size: number of processes.
        local: number of this process on its machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports for all."""
        return self.rank == 0

    def select_classes(self, count: int, group: int = 1) -> range:
        """The classes of this rank, of ``count``: contiguous; sizes differ by at most one group.

        Args:
            count: all classes, a multiple of ``group``.
            group: classes that one rank must have together.

        Raises:
            UserError: if there are more ranks than groups.
        """
        groups = count // group
        if self.size > groups:
            unit = (
                "class" if group == 1 else f"group of {group}, which are compared with each other"
            )
            raise UserError(
                f"{self.size} processes were started for {count} classes: expected at most one per "
                f"{unit}; give torchrun a smaller --nproc-per-node"
            )
        first, last = (groups * rank // self.size * group for rank in (self.rank, self.rank + 1))
        return range(first, last)

    def select_device(self, device: str) -> str:
        """The device of this rank: for ``cuda``, the GPU of its local number.

        Raises:
            UserError: if one GPU is requested for several ranks, or there are too few GPUs.
        """
        if self.size == 1 or device == "cpu":
            return device
        if device != "cuda":
            raise UserError(f"device: expected cuda or cpu for {self.size} processes, got {device}")
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local + 1} of this machine has no GPU: it has "
                f"{torch.cuda.device_count()}; give torchrun a smaller --nproc-per-node"
            )
        return f"cuda:{self.local}"

    def gather(self, item: Any) -> list[Any]:
        """The items of all ranks, in the order of ranks, on every rank.

        Raises:
            RankLost: if another rank is gone.
        """
        items = [item] * self.size
        if self.size > 1:
            with _detect_lost_ranks():
                dist.all_gather_object(items, item)
        return items

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; errors as :meth:`gather`."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        with _detect_lost_ranks():
            dist.all_reduce(votes)
        return bool(votes)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise a UserError of one rank's body on all ranks; they exchange errors on leaving.

        Any other exception leaves at once, without the exchange. One rank alone exchanges nothing.

        Raises:
            UserError: of this rank or of another one, in the words of the first that has one.
            RankLost: if one is gone.
        """
        if self.size == 1:
            yield
            return
        own: UserError | None = None
        try:
            yield
        except UserError as error:
            own = error
        messages = [
            text for text in self.gather(None if own is None else str(own)) if text is not None
        ]
        if messages:
            raise UserError(messages[0]) from own

    def leader_first(self, work: Callable[[], Result]) -> Result:
        """Run ``work``, which may write files for all, on the first rank, then on the others.

        Errors as :meth:`together`.
        """
        with self.together():
            if self.leads:
                result = work()
        with self.together():
            if not self.leads:
                result = work()
        return result


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Yield the ranks that torchrun started, or one rank without it; only the first one logs."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    ranks = Ranks(rank_of_process(), size, int(os.environ.get("LOCAL_RANK", "0")))
    level = log.level
    if not ranks.leads:
        log.setLevel(logging.WARNING)
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield ranks
        with _detect_lost_ranks():
            _leave_together(store, ranks)
    finally:
        log.setLevel(level)
        dist.destroy_process_group()


def _leave_together(store: dist.Store, ranks: Ranks) -> None:
    """Wait until no rank needs gloo any more: a rank that leaves closes its connections.

    A last exchange over gloo is not enough: it ends on one rank while others are still in it.
    """
    store.set(f"done/{ranks.rank}", "")
    store.wait([f"done/{rank}" for rank in range(ranks.size)])
    store.set(f"left/{ranks.rank}", "")
    if ranks.leads:  # it may serve the store
        store.wait([f"left/{rank}" for rank in range(ranks.size)])


@contextmanager
def _detect_lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo raises nothing narrower
        raise RankLost(
            f"rank {rank_of_process()}: another rank of the job is gone; the last complete "
            f"checkpoint is kept, resume from it with --resume and any number of ranks"
        ) from error
