"""Reads options of mechanisms strictly: a value out of range is an error that names its path."""

from __future__ import annotations

from engine.config.settings import Options
from engine.errors import ConfigError


def number(options: Options, path: str, default: float, low: float, high: float) -> float:
    """The option at the end of `path` as a number from low to high. Raises ConfigError."""
    value = options.get(path.rpartition(".")[2], default)
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{path} = {value!r}: write a number") from None
    if not low <= found <= high:
        raise ConfigError(f"{path} = {value}: allowed is {low:g} to {high:g}")
    return found


def whole(options: Options, path: str, default: int, low: int, high: int) -> int:
    """The option at the end of `path` as a whole number from low to high. Raises ConfigError."""
    found = number(options, path, default, low, high)
    if not found.is_integer():
        raise ConfigError(f"{path} = {found:g}: write a whole number")
    return int(found)


def choice(options: Options, path: str, allowed: tuple[str, ...]) -> str:
    """The option at the end of `path`, the first of `allowed` by default. Raises ConfigError."""
    value = options.get(path.rpartition(".")[2], allowed[0])
    if value not in allowed:
        raise ConfigError(f"{path} = {value!r}: allowed are {', '.join(allowed)}")
    return str(value)


def flag(options: Options, path: str) -> bool:
    """The option at the end of `path` as true or false, false by default. Raises ConfigError."""
    value = options.get(path.rpartition(".")[2], False)
    if str(value).lower() not in ("true", "false"):
        raise ConfigError(f"{path} = {value!r}: write true or false")
    return str(value).lower() == "true"
