"""A setting: a dataclass field that is a flag of a command line too."""

from collections.abc import Callable
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    group: str,
    unit: str,
    help: str,
    usual: Any = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A dataclass field that the command line shows as a flag of ``group``, valued in ``unit``.

    ``usual`` is what None stands for, where that is one value for all data sets; ``parse`` reads
    the flag where the field's type does not.
    """
    metadata = {"group": group, "unit": unit, "help": help, "usual": usual, "parse": parse}
    return field(default=default, metadata=metadata)


def number_or_auto(text: str) -> int | None:
    """A whole number, or None for "auto"."""
    return None if text == "auto" else int(text)
