"""The sets that evaluation trains networks on: the condensed one, its initialisation, baselines."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..common.seeds import derive_seed
from ..config import ResolvedConfig
from ..coreset import CORESETS, random_images
from ..initial import initial_images
from ..loaders import RealImages
from ..synthetic import StoredImages, SyntheticSet, label_images
from .config import WHOLE
from .features import train_features
from .protocols import protocol_for
from .results import Task
from .streamed_set import StreamedSet
from .teaching import Teaching
from .trainer import Trainer
from .whole_set import load_whole


class TrainingSets:
    """Builds the training set of every method.

    Args:
        settings: of the run.
        synthetic: its condensed set.
        open_train: opens the training images; called when a method needs them.
        seed: of the evaluation.
        teaching: gives the labels where they are soft and stored.
    """

    def __init__(
        self,
        settings: ResolvedConfig,
        synthetic: SyntheticSet,
        open_train: Callable[[], RealImages],
        seed: int,
        teaching: Teaching,
    ) -> None:
        self._settings, self._synthetic = settings, synthetic
        self._open_train, self._seed, self._teaching = open_train, seed, teaching
        # choosing a coreset takes long: keep the last one, with its method and network
        self._chosen: tuple[str, str, tuple[StoredImages | StreamedSet, Tensor]] | None = None

    def get(self, task: Task, trainer: Trainer) -> tuple[StoredImages | StreamedSet, Tensor]:
        """Images and labels of a task, on the device: ``(n,)`` or stored ones ``(n, classes)``.

        Args:
            task: names method, network and repeat.
            trainer: of the task's network, whose features herding and k-center use.
        """
        if self._chosen is not None and self._chosen[:2] != (task.method, task.network):
            self._chosen = None  # before the next set is built: never two of them in memory
        if task.method == "random" != self._settings.method:
            # another choice for every network: the spread over networks includes that of the choice
            seed = derive_seed(self._seed, "coreset", 1, task.repeat)
            images = random_images(self._open_train(), self._synthetic.stored_per_class, seed)
            return self._soften(task.method, label_images(images))
        if self._chosen is None:
            self._chosen = task.method, task.network, self._build(task.method, trainer)
        return self._chosen[2]

    def _build(self, method: str, trainer: Trainer) -> tuple[StoredImages | StreamedSet, Tensor]:
        """The set of a method that uses the same for every repeat."""
        if method == WHOLE:
            return load_whole(self._open_train(), trainer.protocol.batch_size)
        condensed = method in (self._settings.method, "initial")
        factor = self._synthetic.factor if condensed else 1
        return self._soften(method, label_images(self._choose(method, trainer), factor))

    def _soften(
        self, method: str, labelled: tuple[StoredImages, Tensor]
    ) -> tuple[StoredImages, Tensor]:
        """A set with stored soft labels, where there are any, in place of the hard ones."""
        images, labels = labelled
        soft = self._teaching.soften(method, images)
        return images, labels if soft is None else soft

    def _choose(self, method: str, trainer: Trainer) -> Tensor:
        """Images of a method, ``(classes, ipc, C, H, W)``."""
        ipc = self._synthetic.stored_per_class
        if method == self._settings.method:
            own = self._synthetic.images.to(trainer.device)
            return own.unflatten(0, (-1, self._synthetic.ipc))
        if method == "initial":
            return initial_images(self._open_train(), self._settings)
        real, seed, size = self._open_train(), self._seed, self._synthetic.images.shape[-1]
        # a coreset is the same whatever the protocol of the evaluation
        protocol = protocol_for(self._settings.dataset, size, ipc, real.num_classes)
        features = partial(train_features, trainer, protocol, real, seed)
        return CORESETS[method](real, ipc, seed, features)
