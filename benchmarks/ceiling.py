"""How well can networks do on images as they are stored? The ceiling of tiles and of bases.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.ceiling --out FILE [ROW ...]

All training images of Fashion-MNIST but the held-out ones are stored and decoded again, and a
network is trained on what comes back and tested on the held-out images as they are. A set of a few
images cannot do better by much, unless its numbers are learned. Rows that are in ``FILE`` are not
run again.
"""

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import run_missing
from benchmarks.training import begin_training
from m3d_fast.basis import Basis
from m3d_fast.loaders import RealImages, open_dataset
from m3d_fast.synthetic import decode, encode

DATASET, HOLD_OUT, EPOCHS = "fashionmnist", 0.1, 3

Storage = Callable[[Tensor, Tensor], Tensor]


def keep(images: Tensor, labels: Tensor) -> Tensor:
    """The images as they are."""
    return images


def store_as_tiles(images: Tensor, labels: Tensor, *, factor: int) -> Tensor:
    """Each image as a tile of its side divided by ``factor``."""
    missing = -len(images) % factor**2
    whole = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
    return decode(encode(whole, factor), factor)[: len(images)]


def store_on_basis(
    images: Tensor, labels: Tensor, *, side: int, components: int, each: bool = False
) -> Tensor:
    """Images as coefficients of their principal components, all of them or class by class."""
    if each:
        result = torch.empty_like(images)
        for label in labels.unique():
            own = labels == label
            result[own] = store_on_basis(images[own], labels[own], side=side, components=components)
        return result
    count, channels, height, width = images.shape
    numbers = (1 + components) * channels * side**2 + count * components
    shape = (-(-numbers // (channels * height * width)), channels, height, width)
    basis = Basis(images=count, components=components, side=side, group=1, shape=shape)
    return basis.decode(basis.encode(images[None]))[0]


# as many components as a set of the preset has at 1, 10 and 50 images per class; of each class as
# many as would take the same room at 50
ROWS: Mapping[str, Storage] = {
    "as they are": keep,
    "tiles, factor 2": partial(store_as_tiles, factor=2),
    "tiles, factor 3": partial(store_as_tiles, factor=3),
    "20 components of 14 px": partial(store_on_basis, side=14, components=20),
    "48 components of 28 px": partial(store_on_basis, side=28, components=48),
    "140 components of 28 px": partial(store_on_basis, side=28, components=140),
    "39 components of 28 px for each class": partial(
        store_on_basis, side=28, components=39, each=True
    ),
}


def run_row(store: Storage, real: RealImages, test: RealImages) -> dict[str, Any]:
    """Train and test one network; returns the row of the file.

    Args:
        store: what happens to the training images, float32 in [0, 1] with labels.
        real: the training images.
        test: the held-out ones.
    """
    start = time.perf_counter()
    ((images, labels),) = real.ordered(sum(real.class_sizes))
    before = images.float() / 255
    after = store(before, labels)
    error = (after - before).square().mean().item()
    statistics, classes = (real.mean, real.std), real.num_classes
    trainer, training = begin_training(DATASET, after, labels, statistics, classes, epochs=EPOCHS)
    for _ in training:
        pass
    accuracy = trainer.measure_accuracy(test)
    seconds = time.perf_counter() - start
    return {"accuracy": accuracy, "squared_error": error, "seconds": seconds}


def main() -> None:
    """Run what is missing, and write the file after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all rows")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: expected some of {'; '.join(ROWS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    about = {"dataset": DATASET, "hold_out": HOLD_OUT, "epochs": EPOCHS, "split": "held-out"}
    real, test = (open_dataset(DATASET, split=s, hold_out=HOLD_OUT) for s in ("train", "held-out"))
    run_missing(
        arguments.out,
        about,
        arguments.rows or ROWS,
        lambda name: run_row(ROWS[name], real, test),
    )


if __name__ == "__main__":
    main()
