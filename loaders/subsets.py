"""Which classes, in which order, make up a subset of ImageNet?"""

import json
from pathlib import Path


def subset_classes(name: str) -> tuple[str, ...]:
    """WordNet ids of a subset of ImageNet; label ``i`` is the ``i``-th, not sorted.

    Args:
        name: a key of ``imagenet_subsets.json``.
    """
    lists = json.loads(Path(__file__).with_name("imagenet_subsets.json").read_text())
    return tuple(lists[name])
