"""The sets that evaluation trains networks on: the condensed one, its initialisation, baselines."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..common.processes import rank_of_process
from ..common.progress import Progress
from ..common.seeds import derive_seed, generator
from ..config import ResolvedConfig
from ..coreset import herding, initial_pixels, k_center, random_images
from ..loaders import RealImages
from ..synthetic import StoredImages, SyntheticSet
from .results import Task
from .trainer import Trainer

# training of the network whose features herding and k-center use: images per class, and epochs;
# fewer images where those of all classes, uint8, would take more bytes than the limit
EXTRACTOR_IMAGES, EXTRACTOR_EPOCHS = 500, 5
EXTRACTOR_BYTES = 2e9


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
            return _label(images)
        if self._chosen is None:
            self._chosen = task.method, task.network, self._choose(task.method, trainer)
        condensed = task.method in (self._settings.method, "initial")
        return _label(self._chosen[2], self._synthetic.factor if condensed else 1)

    def _choose(self, method: str, trainer: Trainer) -> Tensor:
        """Images ``(classes, ipc, C, H, W)`` of a method that uses the same for every repeat."""
        ipc = self._synthetic.ipc
        if method == self._settings.method:
            return self._synthetic.images.to(trainer.device).unflatten(0, (-1, ipc))
        if method == "initial":
            return initial_pixels(self._open_train(), self._settings)
        choose = {"herding": herding, "k-center": k_center}[method]
        return choose(self._open_train(), ipc, self._train_extractor(trainer))

    def _train_extractor(self, trainer: Trainer) -> Callable[[Tensor], Tensor]:
        """Train the network briefly on real images; returns its map from images to features."""
        seed, train = self._seed, self._open_train()
        affordable = int(EXTRACTOR_BYTES / math.prod(train.image_shape) / train.num_classes)
        per_class = min(EXTRACTOR_IMAGES, max(1, affordable), *train.class_sizes)
        images = random_images(train, per_class, derive_seed(seed, "coreset", 2))
        extractor = Trainer(
            trainer.network,
            replace(trainer.protocol, epochs=EXTRACTOR_EPOCHS),
            self._synthetic.mean,
            self._synthetic.std,
            device=trainer.device,
            precision=trainer.precision,
            compile=False,
        )
        stored, labels = _label(images)
        label, bar = "features for the coreset", rank_of_process() == 0
        with Progress(label, EXTRACTOR_EPOCHS, images_per_step=len(labels), bar=bar) as progress:
            training = extractor.train(
                stored,
                labels,
                initial=generator(seed, "evaluation-network", 1, device=trainer.device),
                stream=generator(seed, "evaluation-training", 1, device=trainer.device),
            )
            for epoch, _ in enumerate(training, 1):
                progress.update(epoch)
        return extractor.embed


def _label(pixels: Tensor, factor: int = 1) -> tuple[StoredImages, Tensor]:
    """Images ``(C, n, channels, H, W)``, float or uint8, as a flat training set with labels."""
    classes, count = pixels.shape[:2]
    labels = torch.arange(classes, device=pixels.device).repeat_interleave(count * factor**2)
    return StoredImages(pixels.flatten(0, 1), factor), labels
