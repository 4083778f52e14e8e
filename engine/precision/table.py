"""The bits of every expert under a plan, as a config stores them.

`precision.options.table` has a row for each MoE layer: one digit for all its experts, or one digit
for each, in base 36 (`g` is 16). So a resolved config is complete: running it needs neither the
trace nor the sensitivities that the table came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.config.settings import EngineConfig
from engine.errors import ConfigError
from engine.facts.model import ModelFacts
from engine.types import BITS, Bits

PLANNED = ("by_layer", "by_popularity", "by_sensitivity")
"""Schemes that fix the bits of every expert before a run."""

Table = tuple[tuple[Bits, ...], ...]
"""Bits of each expert of each layer, [L][E]."""

_DIGITS: dict[str, Bits] = {("g" if bits == 16 else str(bits)): bits for bits in BITS}


def bits_table(config: EngineConfig, facts: ModelFacts) -> Table | None:
    """The table of a config; None if every expert has precision.bits or the scheme decides when
    experts are loaded. Raises ConfigError if the table is missing or does not fit the model."""
    if config.precision.scheme not in PLANNED:
        return None
    rows = config.precision.options.get("table")
    if rows is None:
        raise ConfigError(
            f"precision.scheme = {config.precision.scheme} needs precision.options.table, or "
            "precision.options.average_bits with by_sensitivity or by_popularity"
        )
    if not isinstance(rows, Sequence) or isinstance(rows, str) or len(rows) != facts.moe_layers:
        raise ConfigError(
            f"precision.options.table has {len(rows) if hasattr(rows, '__len__') else 'no'} rows, "
            f"this model has {facts.moe_layers} MoE layers: give one row for each"
        )
    return tuple(_read_row(number, str(row), facts.experts) for number, row in enumerate(rows))


def write_table(table: Sequence[Sequence[Bits]]) -> list[str]:
    """Rows as a config stores them; one digit if a layer's experts are all alike."""
    digits = {bits: digit for digit, bits in _DIGITS.items()}
    rows = ["".join(digits[bits] for bits in row) for row in table]
    return [row[0] if len(set(row)) == 1 else row for row in rows]


def run_bits(config: EngineConfig) -> tuple[Bits, ...]:
    """All precisions that a run of this resolved config may load, the highest first."""
    own = config.precision.bits
    if config.precision.scheme in PLANNED:
        text = "".join(str(row) for row in config.precision.options.get("table", ()))
        return tuple(bits for bits in BITS if bits == own or _digit(bits) in text)
    low = config.precision.low_bits
    return (own, low) if low and config.precision.scheme != "uniform" else (own,)


def average_bits(table: Sequence[Sequence[Bits]]) -> float:
    """Mean bits over all experts."""
    return sum(map(sum, table)) / sum(map(len, table))


def _read_row(layer: int, row: str, experts: int) -> tuple[Bits, ...]:
    unknown = sorted(set(row) - set(_DIGITS))
    if unknown or len(row) not in (1, experts):
        raise ConfigError(
            f"precision.options.table, row {layer}: {row!r} is not one digit, or {experts} digits "
            f"of {', '.join(_DIGITS)} (g is 16)"
        )
    found = tuple(_DIGITS[digit] for digit in row)
    return found * experts if len(found) == 1 else found


def _digit(bits: Any) -> str:
    return "g" if bits == 16 else str(bits)
