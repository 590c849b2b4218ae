"""Which labels do the networks of an evaluation train on, and who gives them?"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from ..loaders import RealImages
from ..networks import build_network
from ..normalisation import Normalisation
from ..synthetic import StoredImages, SyntheticSet
from .config import WHOLE, EvaluateConfig
from .protocols import SOFT, Protocol, protocol_for
from .soft_labels import LabelFile, Look, SoftLabels, count_bytes, label
from .teacher import TeacherFile, split_teacher
from .teacher_training import TrainedTeacher


def check_labels(config: EvaluateConfig, protocol: Protocol) -> None:
    """Raise UserError unless the settings of labels fit the protocol."""
    name = protocol.name
    if protocol.labels != SOFT:
        for setting in ("teacher", "stored_labels"):
            if getattr(config, setting) is not None:
                raise UserError(
                    f"{setting}: protocol {name} trains on hard labels; expected protocol soft or "
                    f"kd beside it"
                )
    elif config.stored_labels is not None and name != "soft":
        raise UserError(
            f"stored_labels: protocol {name} needs all logits of the teacher at work; expected "
            f"protocol soft"
        )
    elif config.stored_labels is None and config.teacher is None:
        raise UserError(
            f"protocol {name}: expected a teacher, got none; give one with --teacher "
            f"ARCHITECTURE:FILE or --teacher trained"
        )


class Teaching:
    """Hard labels, a teacher at work, or stored soft labels.

    Args:
        config: names the teacher, and how many classes of a stored label are kept.
        protocol: of the evaluation.
        synthetic: the condensed set.
        methods: whose networks are trained, of which ``own`` is the condensed set's.
        own: as above.
        dataset: name of the data set.
        network: trained as a teacher unless another one is named.
        open_train: opens the training images.
        device: where networks train.
        precision: "bf16", "tf32" or "fp32".
        labels_file: of stored labels.
        synthetic_sha256: of the file of the condensed set.

    Raises:
        UserError: for settings that do not fit each other, or a file that is invalid.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        protocol: Protocol,
        synthetic: SyntheticSet,
        *,
        methods: Sequence[str],
        own: str,
        dataset: str,
        network: str,
        open_train: Callable[[], RealImages],
        device: torch.device,
        precision: str,
        labels_file: Path,
        synthetic_sha256: str,
    ) -> None:
        self._protocol, self._synthetic, self._own = protocol, synthetic, own
        self._device, self._kept = device, config.stored_labels
        self._look = Look(Normalisation(synthetic.mean, synthetic.std, device), device, precision)
        check_labels(config, protocol)
        self._check_stored(config, methods)
        self._trained: TrainedTeacher | None = None
        self._file: TeacherFile | None = None
        if config.teacher is not None:
            architecture, path = split_teacher(config.teacher, network)
            if path is None:
                channels, size = synthetic.images.shape[1:3]
                classes = synthetic.num_classes
                build_network(architecture, channels, size, classes)  # raises where it cannot be
                idc = protocol_for(dataset, size, 1, classes)
                self._trained = TrainedTeacher(architecture, dataset, open_train, idc, precision)
                self._file = self._trained.file
            else:
                self._file = TeacherFile.find(architecture, path)
                assert self._teacher is not None  # raises where it does not fit
        self._stored: LabelFile | None = None
        if self._kept is not None:
            identity = None if self._file is None else self._file.identity
            self._stored = LabelFile(labels_file, synthetic_sha256, self._kept, identity)

    def _check_stored(self, config: EvaluateConfig, methods: Sequence[str]) -> None:
        kept, classes = self._kept, self._synthetic.num_classes
        if kept is None:
            return
        if not 1 <= kept <= classes:
            raise UserError(f"stored_labels: expected 1 to {classes} classes, got {kept}")
        if WHOLE in methods:
            raise UserError(
                f"baselines: {WHOLE} has no stored labels; leave it or --stored-labels out"
            )
        others = [method for method in methods if method != self._own]
        if config.teacher is None and others:
            raise UserError(
                f"teacher: only the labels of {self._own} are stored; expected the teacher for "
                f"those of {', '.join(others)} too, or --no-initial and no baselines"
            )

    def describe(self) -> dict[str, Any]:
        """What the results depend on, for ``evaluation.json``."""
        teacher = None if self._file is None else self._file.identity
        if self._stored is not None:
            teacher = self._stored.teacher
        return {
            "labels": self._protocol.labels,
            "teacher": teacher,
            "stored_labels": self._kept,
        }

    @property
    def label_bytes(self) -> int | None:
        """Bytes of the condensed set's stored soft labels; None where there are none."""
        synthetic, kept = self._synthetic, self._kept
        return None if kept is None else count_bytes(_count_decoded(synthetic), kept)

    @property
    def at_work(self) -> TeacherFile | None:
        """The teacher that gives labels while networks train."""
        return self._file if self._stored is None else None

    def prepare(self) -> None:
        """Train the teacher and store the condensed set's labels, if that is to be done."""
        if self._trained is not None:
            self._trained.train()
        if self._stored is not None:
            images = self._synthetic.images.to(self._device)
            self._stored.make(lambda: self._label(StoredImages(images, self._synthetic.factor)))

    def soften(self, method: str, images: StoredImages) -> Tensor | None:
        """Soft labels of a training set ``(n, classes)``; None where they are not stored.

        Those of the condensed set are read from the file; those of other sets are made as these
        were.
        """
        if self._stored is None:
            return None
        own = method == self._own
        labels = self._stored.read(self._device) if own else self._label(images)
        return labels.soften(self._protocol.temperature, self._synthetic.num_classes)

    def _label(self, images: StoredImages) -> SoftLabels:
        assert self._teacher is not None  # as checked
        assert self._kept is not None
        return label(self._teacher, images, self._kept, self._look)

    @cached_property
    def _teacher(self) -> nn.Module | None:
        """The teacher for labels that are stored."""
        if self._file is None:
            return None
        channels, size = self._synthetic.images.shape[1:3]
        return self._file.load(channels, size, self._synthetic.num_classes, self._device)


def _count_decoded(synthetic: SyntheticSet) -> int:
    return len(synthetic.images) * synthetic.factor**2
