"""The classes of the subsets of ImageNet, in label order."""

import json
from functools import cache
from pathlib import Path

from ..common.errors import DataError

CUSTOM = "custom:"  # before the name of a file that lists classes


def subset_classes(name: str) -> tuple[str, ...]:
    """WordNet ids of a subset of ImageNet; label ``i`` is the ``i``-th, not sorted.

    Args:
        name: a key of ``imagenet_subsets.json``, or "custom:FILE".

    Raises:
        DataError: if the user's file is not a list of classes of ImageNet-1K.
    """
    if name.startswith(CUSTOM):
        return _read_custom_classes(Path(name.removeprefix(CUSTOM)).expanduser())
    return tuple(_read_subsets()[name])


def file_name(name: str) -> str:
    """Name of a data set within file names: "custom-LIST" for "custom:DIR/LIST.txt"."""
    return f"custom-{Path(name.removeprefix(CUSTOM)).stem}" if name.startswith(CUSTOM) else name


@cache
def _read_subsets() -> dict[str, list[str]]:
    return json.loads(Path(__file__).with_name("imagenet_subsets.json").read_text())


def _read_custom_classes(file: Path) -> tuple[str, ...]:
    """Read a file of one WordNet id per line; ``#`` begins a comment."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(
            f"the list of classes {file} cannot be read ({cause}): custom:FILE names a text file "
            "of one WordNet id per line"
        ) from cause
    known, seen = set(_read_subsets()["imagenet1k"]), dict[str, int]()
    for number, line in enumerate(lines, 1):
        wnid = line.partition("#")[0].strip()
        if not wnid:
            continue
        if wnid not in known:
            raise DataError(
                f"{file}, line {number}: '{wnid}' is none of ImageNet-1K's 1000 classes, which "
                "look like n01440764"
            )
        if wnid in seen:
            raise DataError(f"{file}, line {number}: {wnid} is in line {seen[wnid]} already")
        seen[wnid] = number
    if len(seen) < 2:
        raise DataError(f"{file} must name two or more classes, it names {len(seen)}")
    return tuple(seen)
