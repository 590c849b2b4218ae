"""Command lines made of settings."""

import argparse
from dataclasses import fields
from types import ModuleType
from typing import Any, get_args, get_type_hints


class CallableModule(ModuleType):
    """A module whose call is that of the function of its own name.

    Importing the module ``m3d_fast.condense`` binds it over the function ``m3d_fast.condense``.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def add_settings(parser: argparse.ArgumentParser, config: type) -> None:
    """One flag per field of the dataclass ``config``, in the groups its metadata name.

    A flag that is not given is absent from the parsed arguments.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    types = get_type_hints(config)
    for setting in fields(config):
        group = setting.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        kind = next((t for t in get_args(types[setting.name]) if t is not type(None)), None)
        kind = kind or types[setting.name]
        text = setting.metadata["help"].replace("%", "%%")
        usual = setting.metadata["usual"] if setting.default is None else setting.default
        flag: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": text if usual in (None, "") else f"{text} [{usual}]",
        }
        if kind is bool:
            flag["action"] = argparse.BooleanOptionalAction
        else:
            parse = setting.metadata.get("parse") or kind
            flag |= {"type": parse, "metavar": setting.metadata["unit"]}
        groups[group].add_argument(f"--{setting.name.replace('_', '-')}", **flag)
