"""Published figures, from the data of ``published.json``; what is not there is None."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..common.files import read_json
from ..evaluation.protocols import HARD
from ..loaders import dataset_info

FILE = Path(__file__).with_name("published.json")
PERCENT, HOUR = 100, 3600.0


@dataclass(frozen=True)
class Published:
    """What is published of a row.

    Attributes:
        accuracy: on the test images, fraction of 1.
        seconds: in which the set was condensed.
        moments: distances of the first three moments, as printed.
        sources: papers and tables of these figures.
    """

    accuracy: float | None = None
    seconds: float | None = None
    moments: tuple[float, ...] | None = None
    sources: tuple[str, ...] = ()


def find_published(
    dataset: str,
    ipc: int,
    network: str,
    method: str,
    *,
    size: int | None = None,
    split: str = "test",
    labels: str = HARD,
) -> Published:
    """What is published of a method.

    Args:
        dataset: its name.
        ipc: synthetic images per class.
        network: trained on the condensed set.
        method: an entry of a comparison, such as ``dm[matching=mmd]``.
        size: of the images; None for the data set's own. Nothing is published of another.
        split: that networks are tested on. What is published is of test images.
        labels: "hard" or "soft", that networks are trained on. What is published is of hard ones.
    """
    if (split, labels) != ("test", HARD) or size not in (None, dataset_info(dataset).default_size):
        return Published()
    found: dict[str, Any] = {}
    sources: list[str] = []
    for block in _read_blocks():
        if (block["dataset"], block["network"]) != (dataset, network):
            continue
        values = dict(zip(block["ipc"], block["values"].get(method, ()), strict=False))
        if values.get(ipc) is not None:
            found[block["measure"]] = values[ipc]
            sources.append(block["source"])
    accuracy, hours = found.get("accuracy"), found.get("hours")
    return Published(
        None if accuracy is None else accuracy / PERCENT,
        None if hours is None else hours * HOUR,
        tuple(found["moments"]) if "moments" in found else None,
        tuple(dict.fromkeys(sources)),
    )


@cache
def _read_blocks() -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = read_json(FILE)
    return blocks
