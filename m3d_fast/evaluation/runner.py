"""Training and testing the networks of tasks in this process."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.files import lock_file
from ..common.seeds import derive_seed, generator, seeded_globally
from ..loaders import RealImages
from ..networks import build_network
from ..synthetic import StoredImages
from .config import WHOLE
from .protocols import Protocol
from .results import Outcome, Task
from .streamed_set import StreamedSet
from .teacher import TeacherFile
from .trainer import Trainer

# pixels per step, over all networks, from which one more beside them gains nothing: 500 images of
# 32 px. An estimate, not measured on a GPU
SATURATING_PIXELS = 500 * 32**2
MOST_SIDE_BY_SIDE = 8

TEST_WORK = 1 / 3  # of a test image, in training images: it has no backward pass


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the networks of an evaluation have in common; it can be sent to another process.

    Attributes:
        protocol: of the training.
        image_shape: ``(C, H, W)``.
        num_classes: outputs of a network.
        mean, std: per channel, pixels in [0, 1].
        device: where to train.
        precision: "bf16", "tf32" or "fp32".
        compiled: methods whose networks are compiled.
        eager: networks that are not compiled, whatever the method.
        seed: of the evaluation.
        lock: a file that processes lock while they compile, so that one does it for all.
        whole_epochs: passes over the full training set; None for those of the protocol.
        teacher: that gives the labels while networks train, if one does.
    """

    protocol: Protocol
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    precision: str
    compiled: frozenset[str]
    seed: int
    lock: Path
    eager: frozenset[str] = frozenset()
    whole_epochs: int | None = None
    teacher: TeacherFile | None = None

    def is_compiled(self, task: Task) -> bool:
        """Whether the network of a task is compiled."""
        return task.method in self.compiled and task.network not in self.eager

    def epochs_of(self, method: str) -> int:
        """Passes over the training set of a method."""
        whole = self.whole_epochs if method == WHOLE else None
        return whole or self.protocol.epochs

    def count_work(self, training_images: int, test_images: int, method: str = "") -> int:
        """The work of one network, in training images."""
        return int(training_images * self.epochs_of(method) + test_images * TEST_WORK)


@dataclass(frozen=True)
class Job:
    """A task with its training set.

    Attributes:
        task: names the network.
        images: on the device, or streamed.
        labels: on the device: int64 ``(n,)``, of streamed images those of a batch; or stored soft
            ones, float32 ``(n, classes)``.
        seconds: in which the set was built.
    """

    task: Task
    images: StoredImages | StreamedSet
    labels: Tensor
    seconds: float


class Runner:
    """Trains and tests networks, on a CPU one at a time and in one thread.

    The results of a CPU therefore depend neither on its cores nor on the number of processes.

    Args:
        setup: of the evaluation.
        test: the test images.
    """

    def __init__(self, setup: Setup, test: RealImages) -> None:
        self._setup, self._test = setup, test
        self._trainers: dict[tuple[str, int, bool], Trainer] = {}
        self._compiled = set[tuple[Trainer, str]]()

    def count_side_by_side(self, images: int) -> int:
        """Networks that share the device, given the images of a training set."""
        setup = self._setup
        if setup.device.type == "cpu":
            return 1
        side = setup.image_shape[-1]
        pixels = min(images, setup.protocol.batch_size) * side**2
        return max(1, min(MOST_SIDE_BY_SIDE, SATURATING_PIXELS // pixels))

    def get_trainer(self, network: str, place: int = 0, *, compile: bool = False) -> Trainer:
        """The trainer of a network; several places hold trainers that run side by side."""
        key = network, place, compile
        if key not in self._trainers:
            setup = self._setup
            channels, side = setup.image_shape[0], setup.image_shape[-1]
            self._trainers[key] = Trainer(
                build_network(network, channels, side, setup.num_classes),
                setup.protocol,
                setup.mean,
                setup.std,
                device=setup.device,
                precision=setup.precision,
                compile=compile,
                teacher=self._teacher,
            )
        return self._trainers[key]

    @cached_property
    def _teacher(self) -> nn.Module | None:
        """Shared by all networks, which do not change it."""
        setup = self._setup
        channels, side = setup.image_shape[0], setup.image_shape[-1]
        if setup.teacher is None:
            return None
        return setup.teacher.load(channels, side, setup.num_classes, setup.device)

    def run(self, jobs: Sequence[Job], report: Callable[[int], None]) -> list[Outcome]:
        """Train the networks of ``jobs`` side by side, then test each.

        Args:
            jobs: as many as :meth:`count_side_by_side`, or fewer.
            report: called with the work done since the last call, in training images.
        """
        start, device = time.perf_counter(), self._setup.device
        tasks = [job.task for job in jobs]
        trainers = [
            self.get_trainer(task.network, place, compile=self._setup.is_compiled(task))
            for place, task in enumerate(tasks)
        ]
        trainings = [self._begin(t, job) for t, job in zip(trainers, jobs, strict=True)]
        dropout = derive_seed(self._setup.seed, "dropout", 0, tasks[0].repeat)
        with _in_one_thread(device), seeded_globally(dropout, device):
            for epoch in range(max(self._setup.epochs_of(job.task.method) for job in jobs)):
                for trainer, training, job in zip(trainers, trainings, jobs, strict=True):
                    if epoch < self._setup.epochs_of(job.task.method):
                        with self._compile_alone(trainer, "train"):
                            next(training)
                        report(len(job.images))
            accuracies = [self._test_network(trainer, report) for trainer in trainers]
        seconds = (time.perf_counter() - start) / len(jobs)
        return [
            Outcome(
                job.task,
                accuracy,
                job.seconds + seconds,
                len(job.images),
                self._setup.epochs_of(job.task.method),
            )
            for job, accuracy in zip(jobs, accuracies, strict=True)
        ]

    def _begin(self, trainer: Trainer, job: Job) -> Iterator[Tensor]:
        seed, repeat, device = self._setup.seed, job.task.repeat, self._setup.device
        return trainer.train(
            job.images,
            job.labels,
            epochs=self._setup.epochs_of(job.task.method),
            initial=generator(seed, "evaluation-network", 0, repeat, device=device),
            stream=generator(seed, "evaluation-training", 0, repeat, device=device),
        )

    def _test_network(self, trainer: Trainer, report: Callable[[int], None]) -> float:
        with self._compile_alone(trainer, "test"):
            accuracy = trainer.measure_accuracy(self._test)
        report(self._setup.count_work(0, sum(self._test.class_sizes)))
        return accuracy

    def _compile_alone(self, trainer: Trainer, what: str) -> AbstractContextManager[object]:
        """Within the first of these blocks no other process compiles: it finds the results."""
        if not trainer.compiled or (trainer, what) in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add((trainer, what))
        return _lock(self._setup.lock)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        lock_file(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_one_thread(device: torch.device) -> Iterator[None]:
    """Train in one thread on a CPU: steps of some 40 images gain nothing from a second one."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
