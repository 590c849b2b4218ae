"""A teacher trained by us on the real training set, once, and kept in the cache."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ..common.hardware import compile_pays
from ..common.processes import rank_of_process
from ..common.progress import Progress
from ..common.seeds import derive_seed, generator, seeded_globally
from ..common.tensors import write_tensors
from ..loaders import RealImages, file_name
from ..networks import build_network
from ..run.cache import describe_images, digest, find_cache, hold
from .protocols import Protocol
from .teacher import TeacherFile, unwrap
from .trainer import Trainer
from .whole_set import load_whole

log = logging.getLogger("m3d_fast")

FORMAT = "m3d_fast teacher 1"
EPOCHS, BATCH, SEED = 20, 128, 0  # of every such teacher, whatever the seed of the evaluation


class TrainedTeacher:
    """A network trained as protocol idc says, but for 20 epochs of batches of 128.

    Args:
        architecture: name of a network of ours.
        dataset: name of the data set, for the name of the file.
        open_train: opens its training images.
        protocol: idc's.
        precision: "bf16", "tf32" or "fp32".
    """

    def __init__(
        self,
        architecture: str,
        dataset: str,
        open_train: Callable[[], RealImages],
        protocol: Protocol,
        precision: str,
    ) -> None:
        self._architecture, self._dataset, self._open = architecture, dataset, open_train
        self._protocol = replace(protocol, epochs=EPOCHS, batch_size=BATCH)
        self._precision = precision

    @cached_property
    def file(self) -> TeacherFile:
        """Its file, which need not exist yet."""
        real = self._open()
        description = describe_images(real) | {
            "dataset": self._dataset,
            "size": real.image_shape[-1],
            "network": self._architecture,
            "protocol": repr(self._protocol),
            "arithmetic": f"{self._precision} on {real.device.type}",
        }
        key = digest(description)
        start = f"{file_name(self._dataset)}-{real.image_shape[-1]}px-{self._architecture}"
        path = find_cache() / "teachers" / f"{start}-{key}.safetensors"
        return TeacherFile(self._architecture, path, f"{self._architecture}, trained, {key}")

    def train(self) -> None:
        """Train it and write its file, unless another evaluation did.

        Raises:
            UserError: if the file cannot be written or locked.
        """
        path = self.file.path
        if not path.exists():
            with hold(path, "the teacher"):
                if not path.exists():
                    self._train(path)

    def _train(self, path: Path) -> None:
        log.info("training a teacher, %s, %d epochs, into %s", self._architecture, EPOCHS, path)
        real, start = self._open(), time.monotonic()
        channels, size = real.image_shape[0], real.image_shape[-1]
        count = sum(real.class_sizes)
        trainer = Trainer(
            build_network(self._architecture, channels, size, real.num_classes),
            self._protocol,
            real.mean,
            real.std,
            device=real.device,
            precision=self._precision,
            compile=compile_pays(size, trained=EPOCHS * count),
        )
        images, labels = load_whole(real, BATCH)
        training = trainer.train(
            images,
            labels,
            initial=generator(SEED, "evaluation-network", 2, device=real.device),
            stream=generator(SEED, "evaluation-training", 2, device=real.device),
        )
        bar = rank_of_process() == 0
        progress = Progress("train teacher", EPOCHS, images_per_step=count, bar=bar)
        with progress, seeded_globally(derive_seed(SEED, "dropout", 2), real.device):
            for epoch, _ in enumerate(training, 1):
                progress.update(epoch)
        metadata = {"format": FORMAT, "seconds": time.monotonic() - start}
        write_tensors(path, unwrap(trainer.network).state_dict(), metadata)
