"""Methods by name, and their options by text."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..common.checks import check_name, check_positive
from ..common.errors import UserError
from ..common.imports import import_object
from .bptt import BPTT
from .cafe import CAFE
from .calibration import Calibration
from .combined import Combined, Term
from .dance import DANCE
from .datadam import DataDAM
from .ddm import DDM
from .dm import DM
from .gradient_matching import DC, DSA, IDC
from .idm import IDM
from .m3d import M3D
from .moments import Moments
from .ncfm import NCFM
from .protocol import Method, Objective
from .ridge import Ridge

METHODS: dict[str, type[Objective]] = {
    "m3d": M3D,
    "dm": DM,
    "moments": Moments,
    "ddm": DDM,
    "datadam": DataDAM,
    "cafe": CAFE,
    "idm": IDM,
    "dc": DC,
    "dsa": DSA,
    "idc": IDC,
    "dance": DANCE,
    "ncfm": NCFM,
    "bptt": BPTT,
}

# terms that any method can add to its loss
TERMS: dict[str, type[Term]] = {
    "calibration": Calibration,
    "ridge": Ridge,
}


def find_method(name: str) -> type[Objective]:
    """The class of the method ``name``, or of a user's own ``package.module:Class``.

    Raises:
        UserError: for an unknown name, a module that cannot be imported, or another kind of object.
    """
    if ":" not in name:
        check_name("method", name, METHODS)
        return METHODS[name]
    found = import_object("method", name, "package.module:Class")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {name}: expected a class that extends m3d_fast.methods.Method")
    return found


def build_method(name: str, options: Mapping[str, Any]) -> Objective:
    """The method ``name`` with ``options``; values may be text, as on a command line.

    Raises:
        UserError: for an unknown method or option, or a value out of range.
    """
    method = find_method(name)
    kinds = typing.get_type_hints(method)
    known = [field.name for field in fields(method)]
    values = {}
    for option, value in options.items():
        if not known:
            raise UserError(f"option {option}: {name} has no options")
        check_name(f"option of {name}", option, known)
        values[option] = parse_option(option, value, kinds[option])
    return method(**values)


def add_terms(method: Objective, weights: Mapping[str, float]) -> Objective:
    """``method`` with the terms of these names, weighted, added to its loss.

    Raises:
        UserError: for an unknown term, one that the method has, a weight out of range, or a method
            that reads no networks.
    """
    for name, weight in weights.items():
        check_name("add", name, TERMS)
        check_positive(f"add: weight of {name}", weight)
        if name in method.terms:
            raise UserError(f"add: the method has the term {name} already; set its option {name}")
    if not weights:
        return method
    if not isinstance(method, Method):
        raise UserError("add: bptt has no loss that terms could be added to; leave it out")
    return Combined(method, tuple((TERMS[name](), weight) for name, weight in weights.items()))


def parse_option(name: str, value: Any, kind: Any) -> Any:
    """``value``, which may be text, as an option of type ``kind``.

    Args:
        name: of the option, for the message.
        value: as on a command line, in Python, or read from JSON.
        kind: bool, int, float, str, a tuple of one of them, or a union.

    Raises:
        UserError: if it is none.
    """
    try:
        return _convert(value, kind)
    except (ValueError, TypeError) as error:
        expected = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
        raise UserError(f"option {name}: expected {expected}, got {value!r}") from error


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_to_first(value, sorted(arguments, key=lambda choice: choice is str))
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(_convert(part, arguments[0]) for part in parts)
    if kind is bool and not isinstance(value, bool):
        words = {"true": True, "1": True, "false": False, "0": False}
        value = words.get(str(value).lower(), value)
    if kind in (int, float) and not isinstance(value, bool):
        number = float(value)
        if kind is int and not number.is_integer():  # nor are inf and nan
            raise ValueError("not a whole number")
        return kind(number)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError("of another type")
    return value


def _convert_to_first(value: Any, kinds: Sequence[Any]) -> Any:
    for kind in kinds[:-1]:
        try:
            return _convert(value, kind)
        except (ValueError, TypeError):
            continue  # the next one may fit
    return _convert(value, kinds[-1])
