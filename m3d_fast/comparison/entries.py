"""What is compared: methods and coresets, each with options and settings of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from ..common.checks import check_name
from ..common.errors import UserError
from ..condense_settings import CondenseSettings
from ..config import CondenseConfig
from ..coreset import CORESETS
from ..methods import METHODS, find_method
from ..methods.registry import parse_option

WHOLE = "whole"  # the full training set: a row, without a run

# a name, and in brackets what is set for it
_ENTRY = re.compile(r"(?P<name>[^\[\],]+)(\[(?P<given>[^\[\]]*)\])?")
# settings that all methods share, or that are no settings of a method
_SHARED = ("ipc", "method", "options")


@dataclass(frozen=True)
class Entry:
    """One row of the comparison.

    Attributes:
        label: as the user wrote it.
        method: name of the method or coreset, or "whole".
        options: of the method.
        settings: of its run, by name.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the run folder."""
        return re.sub(r"[^\w.=-]+", "-", self.label).strip("-")

    @property
    def steps(self) -> bool:
        """Whether its run takes steps."""
        return self.method != WHOLE and self.method not in CORESETS


def parse_entries(text: str) -> list[Entry]:
    """Read ``NAME,NAME[OPTION=VALUE,...],...``.

    Raises:
        UserError: for another form, an unknown name or option, or an entry given twice.
    """
    entries, rest = list[Entry](), text.strip()
    while rest:
        match = _ENTRY.match(rest)
        if match is None or (match.end() < len(rest) and rest[match.end()] != ","):
            raise UserError(
                f"methods: expected NAME or NAME[OPTION=VALUE,...] by commas, got {rest!r}"
            )
        label, name, given = (part or "" for part in match.group(0, "name", "given"))
        entries.append(_read_entry(label.strip(), name.strip(), given))
        rest = rest[match.end() + 1 :].strip()
    folders = [entry.folder for entry in entries]
    for entry in entries:
        if folders.count(entry.folder) > 1:
            raise UserError(f"methods: {entry.label} was given twice; expected different ones")
    if not any(entry.method != WHOLE for entry in entries):
        raise UserError(f"methods: expected a method or coreset, got {text!r}")
    return entries


def _read_entry(label: str, name: str, given: str) -> Entry:
    if ":" not in name:
        check_name("methods", name, (*METHODS, *CORESETS, WHOLE))
    options, settings = dict[str, Any](), dict[str, Any]()
    known = () if name in (*CORESETS, WHOLE) else [f.name for f in fields(find_method(name))]
    kinds = _method_settings() if name in METHODS or ":" in name else {}
    for pair in filter(None, given.split(",")):
        option, equals, value = (part.strip() for part in pair.partition("="))
        option = option.replace("-", "_")
        if not equals:
            raise UserError(f"methods: expected OPTION=VALUE in the brackets of {name}, got {pair}")
        if option in known:
            options[option] = value
        elif option in kinds:
            settings[option] = parse_option(option, value, kinds[option])
        elif not (known or kinds):
            raise UserError(f"methods: {name} has no options, got {option}")
        else:
            check_name(f"option or setting of {name}", option, dict.fromkeys((*known, *kinds)))
    return Entry(label, name, options, settings)


def _method_settings() -> dict[str, Any]:
    """Settings that one method may have alone, and their types."""
    types = get_type_hints(CondenseConfig)
    return {
        f.name: (*get_args(types[f.name]), types[f.name])[0]
        for f in fields(CondenseSettings)
        if f.metadata["group"] == "method" and f.name not in _SHARED and f.metadata["parse"] is None
    }
