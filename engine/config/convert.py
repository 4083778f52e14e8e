"""Converts text values to a setting's type; an error lists the allowed values."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from engine.config.choices import choices_of
from engine.errors import ConfigError, nearest_hint
from engine.types import Bits, parse_size_bytes, shown

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def convert(path: str, owner: type, name: str, value: Any) -> Any:
    hint = _hints(owner)[name]
    try:
        return convert_to(hint, value, sized=name.endswith("bytes"))
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} = {shown(repr(value))}: {error}") from None


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner, include_extras=True)


def convert_to(hint: Any, value: Any, *, sized: bool) -> Any:
    origin = get_origin(hint)
    if allowed := choices_of(hint):
        return convert_choice(allowed, value)
    if origin is types.UnionType and float in get_args(hint):
        return "auto" if value == "auto" else number(value)
    if origin is types.UnionType:  # int | str: bytes, a fraction or auto
        if isinstance(value, str) and (value == "auto" or value.endswith("%")):
            return check_fraction(value)
        return parse_size_bytes(value) if value not in (0, "0") else 0
    if hint is float:
        return number(value)
    if hint is bool:
        return truth(value)
    if hint is int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError("write a whole number")
        if sized and isinstance(value, str) and value != "0":
            return parse_size_bytes(value)
        return whole_number(value)
    if hint is str:
        return str(value)
    if not isinstance(value, Mapping):
        raise TypeError("write a group of options")
    return dict(value)


def truth(value: Any) -> bool:
    """A boolean, or its words as YAML and people write them."""
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise ValueError("write true or false")


def number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("write a number")  # noqa: TRY004
    try:
        found = float(value)
    except ValueError:
        hint = " with a decimal point, such as 0.5" if "," in str(value) else ""
        raise ValueError(f"write a number{hint}") from None
    if not math.isfinite(found):
        raise ValueError("write a finite number")
    return found


def whole_number(value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("write a whole number") from None


def convert_choice(allowed: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads on, off, yes and no as booleans
        value = "on" if value else "off"
    if isinstance(value, str):
        value = value.strip()
    for choice in allowed:
        if value == choice or str(value) == str(choice):
            return choice
    if allowed == get_args(Bits):
        allowed = (*allowed, "prequantized")
    hint = nearest_hint(str(value), map(str, allowed), cutoff=0.6)
    raise ValueError(f"allowed are {', '.join(map(str, allowed))}{hint}")


def check_fraction(text: str) -> str:
    if text == "auto":
        return text
    try:
        fraction = float(text[:-1])
    except ValueError:
        raise ValueError("write bytes, or a fraction such as 25%") from None
    if not 0 < fraction <= 100:
        raise ValueError("a fraction lies above 0% and at most at 100%")
    return text
