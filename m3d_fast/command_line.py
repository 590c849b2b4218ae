"""Command lines whose flags are the settings of a configuration."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from types import ModuleType
from typing import Any, get_args, get_type_hints


class CallableModule(ModuleType):
    """A module that, when called, calls the function of its own name.

    Importing the module ``m3d_fast.condense`` binds it over the function ``m3d_fast.condense``.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def add_settings(
    parser: argparse.ArgumentParser, config: type, without: Collection[str] = ()
) -> None:
    """Add one flag per field of the dataclass ``config``, in the groups its metadata name.

    A flag that is not given is absent from the parsed arguments.

    Args:
        parser: of the command.
        config: a dataclass of settings.
        without: names of settings that are no flags of this command.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    types = get_type_hints(config)
    for setting in fields(config):
        if setting.name in without:
            continue
        group, default = setting.metadata["group"], setting.metadata["default"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        text = setting.metadata["help"].replace("%", "%%")
        flag: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": text if default in (None, "") else f"{text} [{default}]",
        }
        # a field's type is the flag's, or a union that begins with it
        kind = (*get_args(types[setting.name]), types[setting.name])[0]
        if kind is bool:
            flag["action"] = argparse.BooleanOptionalAction
        else:
            parse = setting.metadata["parse"] or kind
            flag |= {"type": parse, "metavar": setting.metadata["metavar"]}
        if setting.metadata["flag"] is not None:
            flag["action"] = _AddPair
        groups[group].add_argument(_flag_of(setting), **flag)


def to_arguments(settings: Any) -> list[str]:
    """The flags that give a command these settings, those that are None left out.

    Args:
        settings: a dataclass whose flags :func:`add_settings` adds.
    """
    words: list[str] = []
    for setting in fields(settings):
        value, flag = getattr(settings, setting.name), _flag_of(setting)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, Mapping) and setting.metadata["flag"] is not None:
            for name, each in value.items():
                words += [flag, f"{name}={each}"]
        elif isinstance(value, Mapping):
            words += [flag, ",".join(f"{name}:{each}" for name, each in value.items()) or "none"]
        elif isinstance(value, tuple):
            words.append(f"{flag}={','.join(map(str, value))}")
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


def _flag_of(setting: Field[Any]) -> str:
    return setting.metadata["flag"] or f"--{setting.name.replace('_', '-')}"


class _AddPair(argparse.Action):
    """Adds a pair to the dictionary of a flag that may be repeated."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        _flag: str | None = None,
    ) -> None:
        name, value = values
        setattr(namespace, self.dest, getattr(namespace, self.dest, {}) | {name: value})
