"""What a reader returns: images, labels and class names that fit together."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...common.errors import DataError
from ..protocol import IntArray


@dataclass(frozen=True)
class LabelledImages:
    """One split of a data set.

    Attributes:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``, in ``[0, len(class_names))``.
        class_names: one name per class, in label order.
        source: where the images came from, for the log and for messages.
    """

    images: Tensor
    labels: IntArray
    class_names: tuple[str, ...]
    source: str


def check_labels(labels: IntArray, num_classes: int, source: str) -> None:
    """Refuse labels outside ``[0, num_classes)``, naming ``source`` and the first bad label.

    Raises:
        DataError: if a label is out of range.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise DataError(
            f"labels must be 0 to {num_classes - 1}, but {source} holds the label "
            f"{labels[bad[0]]} (entry {bad[0]}): the file is damaged or of another data set"
        )
