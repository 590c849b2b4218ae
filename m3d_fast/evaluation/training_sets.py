"""The sets that evaluation trains networks on: the condensed one, its initialisation, baselines."""

from collections.abc import Callable

from torch import Tensor

from ..common.seeds import derive_seed
from ..config import ResolvedConfig
from ..coreset import CORESETS, random_images
from ..initial import initial_pixels
from ..loaders import RealImages
from ..synthetic import StoredImages, SyntheticSet, label_images
from .features import train_features
from .results import Task
from .trainer import Trainer


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
        self._chosen: tuple[str, str, Tensor] | None = None

    def get(self, task: Task, trainer: Trainer) -> tuple[StoredImages, Tensor]:
        """Images and labels ``(n,)`` of a task, on the device.

        Args:
            task: names method, network and repeat.
            trainer: of the task's network, whose features herding and k-center use.
        """
        if self._chosen is not None and self._chosen[:2] != (task.method, task.network):
            self._chosen = None  # before the next set is built: never two of them in memory
        if task.method == "random":
            # another choice for every network: the spread over networks includes that of the choice
            seed = derive_seed(self._seed, "coreset", 1, task.repeat)
            images = random_images(self._open_train(), self._synthetic.ipc, seed)
            return label_images(images)
        if self._chosen is None:
            self._chosen = task.method, task.network, self._choose(task.method, trainer)
        condensed = task.method in (self._settings.method, "initial")
        return label_images(self._chosen[2], self._synthetic.factor if condensed else 1)

    def _choose(self, method: str, trainer: Trainer) -> Tensor:
        """Images ``(classes, ipc, C, H, W)`` of a method that uses the same for every repeat."""
        ipc = self._synthetic.ipc
        if method == self._settings.method:
            return self._synthetic.images.to(trainer.device).unflatten(0, (-1, ipc))
        if method == "initial":
            return initial_pixels(self._open_train(), self._settings)
        real, seed = self._open_train(), self._seed
        return CORESETS[method](real, ipc, seed, lambda: train_features(trainer, real, seed))
