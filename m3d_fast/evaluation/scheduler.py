"""Which networks of an evaluation are trained at once, and where?"""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial

from ..common.progress import ProgressTable
from ..loaders import MemoryImages, RealImages
from .config import WHOLE
from .results import Outcome, Task
from .runner import Job, Runner, Setup
from .training_sets import TrainingSets
from .workers import Workers, count_processes

log = logging.getLogger("m3d_fast")


class Scheduler:
    """Trains networks: several processes on a CPU, side by side on a GPU, or one by one.

    Args:
        setup: of the evaluation.
        sets: builds their training sets.
        test: the images they are tested on.
        train: opens the training images.
        open_test: returns a function that opens ``test`` in another process, with these settings.
        count_images: size of a method's training set.
    """

    def __init__(
        self,
        setup: Setup,
        sets: TrainingSets,
        test: RealImages,
        train: Callable[[], RealImages],
        open_test: Callable[..., Callable[[], RealImages]],
        count_images: Callable[[str], int],
    ) -> None:
        self._setup, self._sets, self._test = setup, sets, test
        self._train, self._open_test, self._count_images = train, open_test, count_images
        self._runner = Runner(setup, test)

    def train(self, tasks: list[Task], *, bar: bool) -> Generator[Outcome, None, None]:
        """Yield the outcomes of ``tasks``, in their order, and show the progress of all.

        A terminal has a line for every method and network, with the accuracies known so far.

        Args:
            tasks: networks to train.
            bar: whether this process shows the progress.

        Raises:
            UserError: for invalid data, or if a process was killed.
        """
        totals = Counter[str]()
        for task in tasks:
            totals[task.row] += self.count_work(task)
        known: dict[str, list[float]] = {task.row: [] for task in tasks}
        with ProgressTable("evaluate", totals, bar=bar) as progress:
            for outcome in self._run(tasks, lambda task, work: progress.advance(task.row, work)):
                accuracies = known[outcome.task.row]
                accuracies.append(outcome.accuracy)
                count, mean = len(accuracies), 100 * statistics.fmean(accuracies)
                progress.status = f"{sum(map(len, known.values()))} of {len(tasks)} networks"
                progress.note(outcome.task.row, f"{mean:.2f} % of {count}")
                yield outcome

    def _run(self, tasks: list[Task], report: Callable[[Task, float], None]) -> Iterator[Outcome]:
        processes = self._count_processes(tasks)
        if processes > 1:
            log.info("%d networks are trained at once, in one thread each", processes)
            streamed = {} if self._test_is_kept else {"cache": "none", "workers": 1}
            open_test = self._open_test(**streamed)
            with Workers(processes, self._setup, open_test) as workers:
                yield from workers.run(tasks, self._build, report)
            return
        at_once = self.count_at_once(tasks)
        for start in range(0, len(tasks), at_once):
            together = tasks[start : start + at_once]
            jobs = [self._build(task) for task in together]
            outcomes = self._runner.run(jobs, partial(_share, together, report))
            del jobs  # before the next sets are built
            yield from outcomes

    def _build(self, task: Task) -> Job:
        start = time.perf_counter()
        images, labels = self._sets.get(task, self._runner.get_trainer(task.network))
        return Job(task, images, labels, time.perf_counter() - start)

    def _is_streamed(self, tasks: list[Task]) -> bool:
        """Whether a set is too large to be held as a whole, so that networks train in turn."""
        whole = any(task.method == WHOLE for task in tasks)
        return whole and not isinstance(self._train(), MemoryImages)

    def _count_processes(self, tasks: list[Task]) -> int:
        if self._is_streamed(tasks):
            return 1
        images = max((self._count_images(task.method) for task in tasks), default=1)
        kept = sum(self._test.class_sizes) if self._test_is_kept else 0
        return count_processes(self._setup, len(tasks), images, kept)

    def count_work(self, task: Task) -> int:
        """The work of a task, in training images."""
        images, test_images = self._count_images(task.method), sum(self._test.class_sizes)
        return self._setup.count_work(images, test_images, task.method)

    def count_at_once(self, tasks: list[Task]) -> int:
        """Networks that this process trains at once, on a GPU or in other processes."""
        if self._is_streamed(tasks):
            return 1
        images = max((self._count_images(task.method) for task in tasks), default=1)
        return max(self._count_processes(tasks), self._runner.count_side_by_side(images))

    @property
    def _test_is_kept(self) -> bool:
        return isinstance(self._test, MemoryImages)


def _share(tasks: list[Task], report: Callable[[Task, float], None], work: int) -> None:
    """Report work on networks that train side by side, step by step in turn."""
    for task in tasks:
        report(task, work / len(tasks))
