"""What does the published way of reporting add: the best test epoch instead of the last?

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.best_epoch SET --out FILE [--epochs N] ...

Networks are trained on a condensed set of Fashion-MNIST by the usual protocol and tested on the
test images every few epochs. The best of these accuracies is chosen on the test images: it is how
much of the published code reports, and here for comparison alone. Networks that are in ``FILE`` are
not trained again.
"""

import argparse
import logging
import statistics
from pathlib import Path
from typing import Any

from benchmarks.training import begin_training
from m3d_fast import SyntheticSet
from m3d_fast.common.files import read_json, write_json
from m3d_fast.loaders import RealImages, open_dataset
from m3d_fast.run.environment import describe_environment

DATASET = "fashionmnist"


def find_epochs(epochs: int, every: int) -> list[int]:
    """Epochs after which networks are tested: every few, and the last."""
    return sorted({*range(every, epochs, every), epochs})


def train_network(
    synthetic: SyntheticSet, test: RealImages, epochs: int, every: int, repeat: int
) -> list[float]:
    """Test accuracies of one network, those of :func:`find_epochs`.

    Args:
        synthetic: the condensed set.
        test: the test images.
        epochs: passes over the decoded set.
        every: epochs between two tests.
        repeat: number of the network; the last accuracy is that of ``evaluate``, compiled alike.
    """
    images, labels = synthetic.decode()
    trainer, training = begin_training(
        DATASET,
        images,
        labels,
        (synthetic.mean, synthetic.std),
        synthetic.num_classes,
        epochs=epochs,
        repeat=repeat,
    )
    tested, accuracies = find_epochs(epochs, every), []
    for epoch, _ in enumerate(training, 1):
        if epoch in tested:
            accuracies.append(trainer.measure_accuracy(test))
            trainer.network.train()
    return accuracies


def summarise(networks: list[list[float]]) -> dict[str, Any]:
    """Mean and spread of the networks' last and of their best accuracies."""
    found = {"last": [n[-1] for n in networks], "best_test_epoch": [max(n) for n in networks]}
    return {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
        for name, values in found.items()
    }


def main() -> None:
    """Train what is missing, and write the file after every network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", type=Path, metavar="SET", help="file of the condensed set")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--every", type=int, default=20, help="epochs between two tests")
    parser.add_argument("--repeats", type=int, default=2, help="networks")
    parser.add_argument("--first", type=int, default=0, help="first network's number")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    synthetic, test = SyntheticSet.load(arguments.set), open_dataset(DATASET, split="test")
    given = {
        "set": arguments.set.name,
        "epochs": arguments.epochs,
        "first_network": arguments.first,
        "tested_after": find_epochs(arguments.epochs, arguments.every),
        "selection": "the best test epoch is chosen on the test images, as published",
    }
    content = read_json(arguments.out) if arguments.out.exists() else given | {"accuracies": []}
    if any(content[key] != value for key, value in given.items()):
        parser.error(f"{arguments.out} is of other settings; expected another --out")
    trained = len(content["accuracies"])
    for repeat in range(arguments.first + trained, arguments.first + arguments.repeats):
        found = train_network(synthetic, test, arguments.epochs, arguments.every, repeat)
        content["accuracies"].append(found)
        content |= summarise(content["accuracies"]) | {"environment": describe_environment()}
        write_json(arguments.out, content)


if __name__ == "__main__":
    main()
