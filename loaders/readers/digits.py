"""scikit-learn's bundled digits, divided into a train and a test split."""

from importlib.util import find_spec
from pathlib import Path

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

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    lines = np.loadtxt(_find_file(), delimiter=",")  # 64 pixels and the label
    labels = lines[:, -1].astype(np.int64)
    # values are whole numbers from 0 to 16
    pixels = np.rint(lines[:, :-1] * (255 / 16)).astype(np.uint8)
    chosen = np.flatnonzero(_select_test(labels) == (split == "test"))
    return LabelledImages(
        images=torch.from_numpy(pixels[chosen].reshape(-1, 1, 8, 8)),
        labels=labels[chosen],
        class_names=tuple(str(digit) for digit in range(10)),
        source="scikit-learn",
    )


def _find_file() -> Path:
    """What ``sklearn.datasets.load_digits`` reads; importing that takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the digits are scikit-learn's", name="sklearn")
    return Path(package.origin).parent / "datasets/data/digits.csv.gz"


def _select_test(labels: np.ndarray) -> np.ndarray:
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.random.default_rng([0, label]).permutation(np.flatnonzero(labels == label))
        held_out[members[: round(len(members) * _TEST_SHARE)]] = True
    return held_out
