"""scikit-learn's bundled digits, divided into a train and a test split."""

import numpy as np
import torch

from .labelled import LabelledImages

_TEST_SHARE = 0.2


def read_digits(split: str) -> LabelledImages:
    """Read the digits at their native 8 px: grey uint8 ``(N, 1, 8, 8)``.

    The set has no split of its own: a fixed random fifth (rounded) of every class is the test
    split, independent of the user's seed.

    Args:
        split: "train" or "test".
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    # values are whole numbers from 0 to 16
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    chosen = np.flatnonzero(_select_test(labels) == (split == "test"))
    return LabelledImages(
        images=torch.from_numpy(pixels[chosen][:, None]),
        labels=labels[chosen],
        class_names=tuple(str(digit) for digit in range(10)),
        source="scikit-learn",
    )


def _select_test(labels: np.ndarray) -> np.ndarray:
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.random.default_rng([0, label]).permutation(np.flatnonzero(labels == label))
        held_out[members[: round(len(members) * _TEST_SHARE)]] = True
    return held_out
