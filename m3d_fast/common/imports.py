"""Objects of the user's own, by ``package.module:name``."""

import importlib
from typing import Any

from .errors import UserError


def import_object(argument: str, path: str, expected: str) -> Any:
    """The object at ``path``.

    Args:
        argument: that holds the path, for messages.
        path: ``package.module:name``.
        expected: what it should be, as in "package.module:Class".

    Raises:
        UserError: if the module cannot be imported, or has no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{argument} {path}: {error}; expected {expected}, importable from the folder where "
            f"the command runs"
        ) from error
