"""The sets that evaluation trains networks on: the condensed one, its initialisation, baselines."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.hardware import free_bytes
from ..common.seeds import derive_seed
from ..config import ResolvedConfig
from ..coreset import CORESETS, random_images
from ..initial import initial_pixels
from ..loaders import RealImages
from ..synthetic import StoredImages, SyntheticSet, label_images
from .config import WHOLE
from .features import train_features
from .results import Task
from .trainer import Trainer

PIECE = 512  # images read at a time


class TrainingSets:
    """Builds the training set of every method.

    Args:
        settings: of the run.
        synthetic: its condensed set.
        open_train: opens the training images; called when a method needs them.
        seed: of the evaluation.
    """

    def __init__(
        self,
        settings: ResolvedConfig,
        synthetic: SyntheticSet,
        open_train: Callable[[], RealImages],
        seed: int,
    ) -> None:
        self._settings, self._synthetic = settings, synthetic
        self._open_train, self._seed = open_train, seed
        # choosing a coreset takes long: keep the last one, with its method and network
        self._chosen: tuple[str, str, tuple[StoredImages, Tensor]] | None = None

    def get(self, task: Task, trainer: Trainer) -> tuple[StoredImages, Tensor]:
        """Images and labels ``(n,)`` of a task, on the device.

        Args:
            task: names method, network and repeat.
            trainer: of the task's network, whose features herding and k-center use.
        """
        if self._chosen is not None and self._chosen[:2] != (task.method, task.network):
            self._chosen = None  # before the next set is built: never two of them in memory
        if task.method == "random" != self._settings.method:
            # another choice for every network: the spread over networks includes that of the choice
            seed = derive_seed(self._seed, "coreset", 1, task.repeat)
            images = random_images(self._open_train(), self._synthetic.ipc, seed)
            return label_images(images)
        if self._chosen is None:
            self._chosen = task.method, task.network, self._build(task.method, trainer)
        return self._chosen[2]

    def _build(self, method: str, trainer: Trainer) -> tuple[StoredImages, Tensor]:
        """The set of a method that uses the same for every repeat."""
        if method == WHOLE:
            return self._read_whole()
        condensed = method in (self._settings.method, "initial")
        factor = self._synthetic.factor if condensed else 1
        return label_images(self._choose(method, trainer), factor)

    def _read_whole(self) -> tuple[StoredImages, Tensor]:
        """All training images, as bytes on the device, decoded batch by batch if need be."""
        real = self._open_train()
        size = sum(real.class_sizes) * math.prod(real.image_shape)
        free = free_bytes(real.device)
        if size > free:
            raise UserError(
                f"the {sum(real.class_sizes)} training images take {size / 1e9:.2f} GB on "
                f"{real.device}, {free / 1e9:.2f} GB are free; leave out the baseline whole"
            )
        images = torch.empty(
            (sum(real.class_sizes), *real.image_shape), dtype=torch.uint8, device=real.device
        )
        labels = torch.empty(len(images), dtype=torch.int64, device=real.device)
        done = 0
        for part, marks in real.ordered(PIECE):
            images[done : done + len(part)] = part
            labels[done : done + len(part)] = marks
            done += len(part)
        return StoredImages(images), labels

    def _choose(self, method: str, trainer: Trainer) -> Tensor:
        """Images of a method, ``(classes, ipc, C, H, W)``."""
        ipc = self._synthetic.ipc
        if method == self._settings.method:
            return self._synthetic.images.to(trainer.device).unflatten(0, (-1, ipc))
        if method == "initial":
            return initial_pixels(self._open_train(), self._settings)
        real, seed = self._open_train(), self._seed
        return CORESETS[method](real, ipc, seed, lambda: train_features(trainer, real, seed))
