"""The sets that evaluation trains networks on: the condensed one, its initialisation, baselines."""

from collections.abc import Callable

from torch import Tensor

from ..common.seeds import derive_seed
from ..config import ResolvedConfig
from ..coreset import CORESETS, random_images
from ..initial import initial_pixels
from ..loaders import MemoryImages, RealImages
from ..synthetic import StoredImages, SyntheticSet, label_images
from .config import WHOLE
from .features import train_features
from .results import Task
from .streamed_set import StreamedSet
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
        self._chosen: tuple[str, str, tuple[StoredImages | StreamedSet, Tensor]] | None = None

    def get(self, task: Task, trainer: Trainer) -> tuple[StoredImages | StreamedSet, Tensor]:
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

    def _build(self, method: str, trainer: Trainer) -> tuple[StoredImages | StreamedSet, Tensor]:
        """The set of a method that uses the same for every repeat."""
        if method == WHOLE:
            return self._build_whole(trainer)
        condensed = method in (self._settings.method, "initial")
        factor = self._synthetic.factor if condensed else 1
        return label_images(self._choose(method, trainer), factor)

    def _build_whole(self, trainer: Trainer) -> tuple[StoredImages | StreamedSet, Tensor]:
        """All training images: those of a small set as bytes on the device, others streamed."""
        real = self._open_train()
        if not isinstance(real, MemoryImages):
            streamed = StreamedSet(real, trainer.protocol.batch_size)
            return streamed, streamed.labels
        ((images, labels),) = real.ordered(sum(real.class_sizes))
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
