"""Checks of single settings: one sentence says what was expected."""

import difflib
import math
from collections.abc import Iterable

from .errors import UserError


def check_name(
    argument: str, given: str | None, known: Iterable[str], error: type[UserError] = UserError
) -> None:
    """Raise ``error``, offering the nearest names, unless ``given`` is known."""
    names = list(known)
    if given not in names:
        # all names are in lower case
        near = difflib.get_close_matches((given or "").lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        raise error(f"{argument}: {given!r} is not known; {hint}")


def check_positive(argument: str, value: float | None) -> None:
    """Raise UserError unless ``value`` is finite and above 0."""
    if value is None or not math.isfinite(value) or value <= 0:
        raise UserError(f"{argument}: expected a number above 0, got {value}")
