"""The ranks of a job under torchrun: each condenses its share of the classes by itself.

No gradient travels. What ranks tell each other goes over gloo, from host to host: whether to stop,
the losses to log, mistakes. One process alone is a job of one rank.
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

# others wait while the first rank prepares a data set; a rank that dies is noticed at once
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

    def share(self, count: int) -> range:
        """The classes of this rank: a contiguous range, sizes differ by at most one.

        Raises:
            UserError: if there are more ranks than classes.
        """
        if self.size > count:
            raise UserError(
                f"{self.size} processes were started for {count} classes: expected at most one per "
                f"class; give torchrun a smaller --nproc-per-node"
            )
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def device(self, device: str) -> str:
        """This rank's own device: ``cuda`` is the GPU of its local number.

        Raises:
            UserError: if one GPU was named for several ranks, or there are fewer GPUs than ranks.
        """
        if self.size == 1 or device == "cpu":
            return device
        if device != "cuda":
            raise UserError(f"device: {device} was asked for of {self.size} processes; give cuda")
        if self.local >= torch.cuda.device_count():
            raise UserError(
                f"process {self.local + 1} of this machine has no GPU: it has "
                f"{torch.cuda.device_count()}; give torchrun a smaller --nproc-per-node"
            )
        return f"cuda:{self.local}"

    def gather(self, item: Any) -> list[Any]:
        """What every rank gives, in their order, on every rank.

        Raises:
            RankLost: if one is gone.
        """
        items = [item] * self.size
        if self.size > 1:
            with _watched():
                dist.all_gather_object(items, item)
        return items

    def any(self, flag: bool) -> bool:
        """Whether one of the ranks says yes; errors as :meth:`gather`."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        with _watched():
            dist.all_reduce(votes)
        return bool(votes)

    def agree(self, work: Callable[[], Result]) -> Result:
        """Run ``work``; a mistake on one rank is raised on all of them, in its words.

        Raises:
            UserError: of ``work``, on this or another rank.
            RankLost: if one is gone.
        """
        if self.size == 1:
            return work()
        mistake: Exception | None = None
        try:
            result = work()
        except UserError as error:
            mistake = error
        found = [text for text in self.gather(None if mistake is None else str(mistake)) if text]
        if found:
            raise UserError(found[0]) from mistake
        return result

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """Run ``work`` on the first rank alone, the others wait; errors as :meth:`agree`."""

        def mine() -> Result | None:
            return work() if self.leads else None

        return self.agree(mine)

    def first_one_then_all(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` on the first rank, then on the others: it may prepare files for them."""
        led = self.lead(work)
        return self.agree(work if led is None else lambda: led)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks torchrun started, or one process alone; only the first one logs."""
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
        with _watched():
            _leave_together(store, ranks)
    finally:
        log.setLevel(level)
        dist.destroy_process_group()


def _leave_together(store: dist.Store, ranks: Ranks) -> None:
    """Wait until no rank needs gloo any more: one that leaves takes its connections away.

    A last exchange over gloo would not do: it ends on one rank while others are still in it.
    """
    store.set(f"done/{ranks.rank}", "")
    store.wait([f"done/{rank}" for rank in range(ranks.size)])
    store.set(f"left/{ranks.rank}", "")
    if ranks.leads:  # it may be the one that serves the store
        store.wait([f"left/{rank}" for rank in range(ranks.size)])


@contextmanager
def _watched() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no narrower one
        raise RankLost(
            f"rank {rank_of_process()}: another rank of the job is gone; the last complete "
            f"checkpoint is kept, go on with --resume and any number of ranks"
        ) from error
