"""Public names of a package that are imported on first use.

Not in common/, which asks for the versions that the engine needs: the op runs on older ones.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def import_on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562).

    Args:
        package: ``__name__`` of the package.
        homes: for each public name the module, relative to the package, that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
