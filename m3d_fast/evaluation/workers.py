"""Processes that train the networks of an evaluation on a CPU, several at once."""

import logging
import math
import os
import pickle
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch

from ..common.errors import UserError
from ..common.hardware import free_bytes, keep_freed_memory, usable_cores
from ..common.processes import processes_on_machine
from ..loaders import RealImages
from .results import Outcome, Task
from .runner import Job, Runner, Setup

# work below which processes, which take 5 s to start, are not worth it: 10 s of a core (ConvNet-3,
# 28 px, bf16)
PAYS_PIXELS = 8_000 * 28**2

# memory of a process: torch and a network; and per pixel of a batch the activations that backward
# needs (760 bytes in bf16 were counted in ConvNet-3, twice as many in float32)
PROCESS_BYTES, BYTES_PER_PIXEL = 0.8e9, 1500

REPORT_SECONDS = 1.0  # between two messages of a process about its progress
END_SECONDS = 5.0  # for a process to end by itself

Message = Outcome | UserError | int  # what a process sends; int: work done, in training images


def count_processes(setup: Setup, tasks: int, training_images: int, test_images: int) -> int:
    """How many processes train these networks: by cores, memory and work; 1 means this one.

    Args:
        setup: of the evaluation.
        tasks: networks to train.
        training_images: of the largest training set.
        test_images: each process holds all, unless they are streamed.
    """
    pixels = math.prod(setup.image_shape[1:])
    work = tasks * setup.count_work(training_images, test_images) * pixels
    if setup.device.type != "cpu" or work < PAYS_PIXELS:
        return 1
    channels, batch = setup.image_shape[0], min(setup.protocol.batch_size, training_images)
    images_bytes = pixels * channels * (training_images * 4 + test_images)
    each = PROCESS_BYTES + images_bytes + batch * pixels * BYTES_PER_PIXEL
    free = free_bytes(setup.device) // processes_on_machine()
    return max(1, min(usable_cores(), tasks, int(free // each)))


@dataclass
class _Worker:
    """A process and this end of its connection."""

    process: "subprocess.Popen[bytes]"
    connection: Connection
    job: int | None = field(default=None)  # the task it works on, by its position


class Workers:
    """Processes of one thread each; a context, whose end ends them.

    Args:
        count: of processes.
        setup: of the evaluation.
        open_test: opens the test images; called in every process, so it must be picklable.

    Raises:
        UserError: on entering, if no process can be started.
    """

    def __init__(self, count: int, setup: Setup, open_test: Callable[[], RealImages]) -> None:
        self._count, self._setup, self._open_test = count, setup, open_test
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        try:
            for _ in range(self._count):
                self._workers.append(_start())
        except OSError as error:
            self._end()
            raise UserError(f"no process can be started to train networks ({error})") from error
        for worker in self._workers:
            self._send(worker, (self._setup, self._open_test))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def run(
        self,
        tasks: Sequence[Task],
        build: Callable[[Task], Job],
        report: Callable[[Task, int], None],
    ) -> Iterator[Outcome]:
        """Yield the outcomes in the order of ``tasks``.

        Args:
            tasks: networks to train.
            build: makes the training set of a task, in this process, when a process is idle.
            report: called with a task and the work done on it since, in training images.

        Raises:
            UserError: of a process, or if one was killed.
        """
        waiting, finished = deque(enumerate(tasks)), dict[int, Outcome]()
        for position in range(len(tasks)):
            while position not in finished:
                for worker in self._workers:
                    if worker.job is None and waiting:
                        worker.job, task = waiting.popleft()
                        self._send(worker, build(task))
                busy = {w.connection: w for w in self._workers if w.job is not None}
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    self._handle(busy[connection], tasks, finished, report)
            yield finished.pop(position)

    def _handle(
        self,
        worker: _Worker,
        tasks: Sequence[Task],
        finished: dict[int, Outcome],
        report: Callable[[Task, int], None],
    ) -> None:
        message = self._receive(worker)
        if isinstance(message, UserError):
            raise message
        assert worker.job is not None
        if isinstance(message, int):
            report(tasks[worker.job], message)
        else:
            finished[worker.job], worker.job = message, None

    def _send(self, worker: _Worker, item: object) -> None:
        try:
            _send(worker.connection, item)
        except OSError:
            while True:  # it has ended: its last message, or the lack of one, says why
                message = self._receive(worker)
                if isinstance(message, UserError):
                    raise message from None

    def _receive(self, worker: _Worker) -> Message:
        try:
            message: Message = _receive(worker.connection)
        except (EOFError, OSError) as error:
            status = worker.process.wait()
            if status >= 0:
                raise RuntimeError(
                    f"a process that trained a network failed with status {status}; "
                    f"its traceback is above"
                ) from error
            raise UserError(
                f"a process that trained a network was ended by signal {-status}, often for lack "
                f"of memory; finished networks are kept: start the evaluation again"
            ) from error
        return message

    def _end(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers = []


def _send(connection: Connection, item: object) -> None:
    # not connection.send: torch would pass tensors through shared memory, which may be small
    connection.send_bytes(pickle.dumps(item))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def _start() -> _Worker:
    ours, theirs = Pipe()
    try:
        # not multiprocessing's start: it would run the caller's main module once more
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C reaches this process alone, which then ends the others
        )
    finally:
        theirs.close()
    return _Worker(process, ours)


def serve(connection: Connection) -> None:
    """Work for another process: receive the setup, then train networks until it has ended."""
    report = _Reporter(connection)
    try:
        setup, open_test = _receive(connection)
        runner = Runner(setup, open_test())
        while True:
            job = _receive(connection)
            (outcome,) = runner.run([job], report)
            report.flush()
            _send(connection, outcome)
    except UserError as error:
        _send(connection, error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is left to work for


class _Reporter:
    """Sends the work done, at intervals: that the other process has ended is noticed by it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._work, self._sent = connection, 0, time.monotonic()

    def __call__(self, work: int) -> None:
        self._work += work
        if time.monotonic() - self._sent >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what has not been sent."""
        _send(self._connection, self._work)
        self._work, self._sent = 0, time.monotonic()


def main() -> None:
    """Run ``python -m m3d_fast.evaluation.workers DESCRIPTOR``, as :class:`Workers` does."""
    (descriptor,) = sys.argv[1:]
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(1)
    keep_freed_memory()
    serve(Connection(int(descriptor)))


if __name__ == "__main__":
    main()
