"""A setting: a field of a configuration that is also a flag of a command line."""

from collections.abc import Callable
from dataclasses import field, fields
from typing import Any


def setting(
    *,
    group: str,
    help: str,
    metavar: str | None = None,
    default: Any = None,
    parse: Callable[[str], Any] | None = None,
    flag: str | None = None,
) -> Any:
    """A dataclass field, None until it is given.

    Args:
        group: heading of ``--help`` under which the flag stands.
        help: text of the flag. Where what None stands for depends on other settings, the text
            ends with a description of it in brackets.
        metavar: the flag's value in ``--help``; switches have none.
        default: what None stands for, where that is one value; ``--help`` shows it in brackets.
        parse: reads the flag's text, where the field's type does not.
        flag: its name, unless that of the field; such a flag may be repeated, and the pairs that
            ``parse`` makes of its texts become a dictionary.
    """
    metadata = {"group": group, "help": help, "metavar": metavar, "default": default}
    return field(default=None, metadata=metadata | {"parse": parse, "flag": flag})


def defaults_of(config: type) -> dict[str, Any]:
    """The ``default`` of every setting of the dataclass ``config``, by name."""
    return {field.name: field.metadata["default"] for field in fields(config)}


def names_of(config: type) -> tuple[str, ...]:
    """Names of the settings of the dataclass ``config``."""
    return tuple(field.name for field in fields(config))


def fill_defaults(config: Any) -> None:
    """Give every setting of a frozen ``config`` that is None its ``default``, in place."""
    for name, value in defaults_of(type(config)).items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)


def option(text: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(text)
    return name.strip().replace("-", "_"), value.strip()


def weights(text: str) -> dict[str, float]:
    """Names and weights of ``NAME:WEIGHT,...``, or of "none"."""
    if text == "none":
        return {}
    pairs = [part.partition(":") for part in text.split(",")]
    return {name.strip(): float(weight) for name, _, weight in pairs}


def number_or_auto(text: str) -> int | None:
    """A whole number, or None for "auto"."""
    return None if text == "auto" else int(text)
