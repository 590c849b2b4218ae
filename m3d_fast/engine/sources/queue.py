"""A queue of networks that grow up on real images during the run (IDM, arXiv 2307.09742)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ...common.seeds import derive_seed, generator
from ...config import ResolvedConfig
from ...loaders import RealImages
from ..embedding import Embedder
from .training import LabelledRows, NetworkTraining, Recipe
from .weights import Weights

LENGTH = 100  # networks at most; then a new one replaces the oldest
TRAINED, STEPS, BATCH = 2, 10, 256  # networks after every step, and the steps of each


def iterations_per_network(ipc: int) -> int:
    """Iterations after which the queue gets another network."""
    return 5 if ipc == 1 else 30


def count_slots(config: ResolvedConfig) -> int:
    """Networks that the queue of a run comes to."""
    return min(LENGTH, 1 + config.iterations // iterations_per_network(config.ipc))


class QueuedNetworks:
    """Up to 100 networks, a new one every 30 iterations (5 at one image per class).

    One of them at random embeds for ``ipm`` iterations; after every iteration two of them at random
    train 10 steps of 256 real images of all classes: SGD with learning rate 0.01, momentum 0.9,
    weight decay 5e-4. Ours, where the paper is silent: momentum starts at zero each time, and the
    run's augmentation is applied with one draw per image. The embedder's ``accuracy`` is that of a
    network's last 10 steps.

    Every rank trains the same networks, so each needs the images of all classes.

    Args:
        embedder: whose network is written.
        config: resolved settings.
        real: training images of all classes.
    """

    pretraining_seconds = 0.0

    def __init__(self, embedder: Embedder, config: ResolvedConfig, real: RealImages) -> None:
        self._embedder, self._config, self._rows = embedder, config, LabelledRows(real)
        self._batch = min(BATCH, self._rows.count)
        recipe = Recipe(self._batch, config.augment)
        self._training = NetworkTraining(config, real, recipe, compile=config.compile)
        self._trained = Weights(self._training.network.parameters())
        self._target = Weights(embedder.network.parameters())
        self._every = iterations_per_network(config.ipc)
        slots = count_slots(config)
        self._weights = torch.zeros(slots, self._trained.count, device=embedder.device)
        self._accuracy = torch.zeros(slots, device=embedder.device)
        self._draw(0)

    def load(self, iteration: int) -> None:
        """Write the network chosen for ``iteration``, as it is now."""
        model = iteration // self._config.ipm
        rng = np.random.default_rng(derive_seed(self._config.seed, "queue-choice", model))
        slot = int(rng.integers(self._count_networks(model * self._config.ipm)))
        self._target.write(self._weights[slot])
        self._embedder.accuracy.copy_(self._accuracy[slot])
        self._embedder.publish()

    def update(self, iteration: int) -> None:
        """Train two networks; add the one that is new in the next iteration."""
        present = self._count_networks(iteration)
        seed = derive_seed(self._config.seed, "network-training", iteration)
        chosen = np.random.default_rng(seed).choice(present, min(TRAINED, present), replace=False)
        for slot in map(int, chosen):
            self._train(slot, iteration)
        number, since = divmod(iteration + 1, self._every)
        if since == 0:
            self._draw(number)

    def seconds_per_update(self) -> float:
        """Seconds of :meth:`update` once there are two networks, measured on one step."""
        return TRAINED * STEPS * self._training.seconds_per_step()

    def state(self) -> dict[str, Tensor]:
        """Weights and accuracies of all networks."""
        return {"weights": self._weights, "accuracy": self._accuracy}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        self._weights.copy_(tensors["weights"])
        self._accuracy.copy_(tensors["accuracy"])

    def _count_networks(self, iteration: int) -> int:
        return min(len(self._weights), 1 + iteration // self._every)

    def _draw(self, number: int) -> None:
        """Add a random network."""
        stream = generator(self._config.seed, "network", number, device=self._embedder.device)
        self._training.initialise(stream)
        slot = number % len(self._weights)
        self._trained.read(self._weights[slot])
        self._accuracy[slot] = 0.0

    def _train(self, slot: int, iteration: int) -> None:
        purpose = ("network-training", iteration, slot + 1)
        seed = self._config.seed
        rows = self._rows.draw(STEPS, self._batch, derive_seed(seed, *purpose))
        stream = generator(seed, *purpose, device=self._embedder.device)
        self._trained.write(self._weights[slot])
        self._training.begin()
        for images, labels in self._rows.read(lambda: iter(rows)):
            self._training.take(images, labels, stream)
        self._trained.read(self._weights[slot])
        self._accuracy[slot] = self._training.accuracy
