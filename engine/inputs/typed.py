"""Checks that the fields of a value are of the types that they are annotated with.

In: a dataclass or NamedTuple made of JSON that somebody wrote. Raises ValueError that names the
field.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

MOST_WHOLE = 1 << 62


def check_types(value: Any, place: str = "") -> None:
    """Raise ValueError unless every field is of its type; whole numbers stay below MOST_WHOLE.

    place: what stands before a field's name in the message.
    """
    kind: Any = type(value)
    for name, hint in _hints(kind).items():
        _check(f"{place}{name}", getattr(value, name), hint)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    found = typing.get_type_hints(kind)
    names = [one.name for one in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else ()
    return {name: found[name] for name in names or found}


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _check(place: str, value: Any, hint: Any) -> None:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        _check_any(place, value, inner)
    elif origin is tuple:
        _require(isinstance(value, tuple | list), place, value, "a list")
        for index, one in enumerate(value):
            _check(f"{place}.{index}", one, inner[0])
    elif origin in (dict, Mapping):
        _require(isinstance(value, Mapping), place, value, "a mapping")
        for key, one in value.items():
            _check(f"a key of {place}", key, inner[0])
            _check(f"{place}.{key}", one, inner[1])
    elif origin is Literal:
        _require(value in inner, place, value, f"one of {', '.join(map(str, inner))}")
    elif hint is int:
        _require(type(value) is int and abs(value) < MOST_WHOLE, place, value, "a whole number")
    elif hint is float:
        _require(type(value) in (int, float), place, value, "a number")
    elif _is_dataclass(hint) or hasattr(hint, "_fields"):
        _require(isinstance(value, hint), place, value, "a mapping")
        check_types(value, f"{place}.")
    elif hint is not Any:
        _require(type(value) is hint, place, value, getattr(hint, "__name__", str(hint)))


def _check_any(place: str, value: Any, hints: tuple[Any, ...]) -> None:
    """One of several types fits; the message is about the first."""
    if value is None and type(None) in hints:
        return
    wanted = [hint for hint in hints if hint is not type(None)]
    for hint in wanted[1:]:
        try:
            _check(place, value, hint)
        except ValueError:
            continue
        return
    _check(place, value, wanted[0])


def _require(holds: bool, place: str, value: Any, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{place} is {repr(value)[:40]}, not {wanted}")
