"""The splits of a data set, and the share of the training images that is held out of it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..common.checks import check_name
from ..common.errors import DataError
from .protocol import BackEnd, IntArray
from .readers.labelled import LabelledImages, check_labels

TRAIN, HELD_OUT, TEST = SPLITS = ("train", "held-out", "test")
FILE_SPLITS = (TRAIN, TEST)  # those that data sets come with

# one choice for all runs, whatever their seed: what is decided on held-out images stays comparable
_SEED = 2412


def check_split(split: str, hold_out: float) -> None:
    """Raise DataError for an unknown split, a share out of range, or a split that it leaves empty.

    Args:
        split: "train", "held-out" or "test".
        hold_out: share of the training images that is held out.
    """
    check_name("split", split, SPLITS, DataError)
    if not 0 <= hold_out < 1:
        raise DataError(f"hold_out: expected a share from 0 to below 1, got {hold_out}")
    if split == HELD_OUT and hold_out == 0:
        raise DataError("split held-out: no image was held out; give a share with --hold-out")


def file_split(split: str) -> str:
    """The split of the files in which the images of ``split`` are."""
    return TEST if split == TEST else TRAIN


def split_class(name: str, size: int, split: str, hold_out: float) -> IntArray:
    """Indices within a class of the training images that belong to ``split``, ascending.

    Args:
        name: of the class, which also decides on the choice, so that subsets of a data set hold
            out the same images.
        size: its training images.
        split: "train" or "held-out".
        hold_out: share that is held out, rounded to whole images.

    Raises:
        DataError: if one of the two splits gets no image of the class.
    """
    held = round(size * hold_out)
    if not 0 < held < size:
        lacks = "held-out" if held == 0 else "training"
        raise DataError(
            f"hold_out: a share of {hold_out} leaves class '{name}', which has {size} training "
            f"images, without {lacks} images; expected a {'larger' if held == 0 else 'smaller'} one"
        )
    order = np.random.default_rng([_SEED, *name.encode()]).permutation(size)
    return np.sort(order[:held] if split == HELD_OUT else order[held:])


def select_images(data: LabelledImages, split: str, hold_out: float) -> LabelledImages:
    """The images of "train" or "held-out"; within a class they keep their order.

    Raises:
        DataError: if labels are wrong, or a class gets no image.
    """
    check_labels(data.labels, len(data.class_names), data.source)
    rows = []
    for label, name in enumerate(data.class_names):
        members = np.flatnonzero(data.labels == label)
        rows.append(members[split_class(name, len(members), split, hold_out)])
    chosen = np.concatenate(rows)
    images = data.images.index_select(0, torch.from_numpy(chosen).to(data.images.device))
    return replace(data, images=images, labels=data.labels[chosen])


class SplitBackEnd:
    """A back end of "train" or "held-out", over one of all training images.

    Args:
        back_end: of all training images.
        split: "train" or "held-out".
        hold_out: share that is held out.

    Raises:
        DataError: if a class gets no image.
    """

    def __init__(self, back_end: BackEnd, split: str, hold_out: float) -> None:
        chosen = [
            split_class(name, size, split, hold_out)
            for name, size in zip(back_end.class_names, back_end.class_sizes, strict=True)
        ]
        self._back_end = back_end
        self._rows = _number_rows(chosen, back_end.class_sizes)
        self.name, self.source = back_end.name, back_end.source
        self.class_names = back_end.class_names
        self.class_sizes = tuple(map(len, chosen))
        self.image_shape, self.layout = back_end.image_shape, back_end.layout

    def read(self, row_batches: Iterator[IntArray]) -> AbstractContextManager[Iterator[Tensor]]:
        """Decode these rows of the split, see ``BackEnd``."""
        return self._back_end.read(self._rows[rows] for rows in row_batches)


def _number_rows(chosen: Sequence[IntArray], class_sizes: Sequence[int]) -> IntArray:
    """Rows of a back end of the given indices within its classes."""
    first_rows = np.cumsum([0, *class_sizes[:-1]])
    return np.concatenate([first + part for first, part in zip(first_rows, chosen, strict=True)])
