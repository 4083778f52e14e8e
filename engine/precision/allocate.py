"""Computes a table of bits: by sensitivity of layers, or by popularity of experts.

Both minimise a sum of losses under an average number of bits, greedily along the lower convex hull
of every unit's loss curve, which is optimal up to the last step that fits. Values only, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.config.settings import EngineConfig, optimize_name
from engine.derived.file import DerivedKind, load_json, save_json
from engine.errors import ConfigError, StorageError
from engine.facts.model import ModelFacts
from engine.precision.table import PLANNED, Table, write_table
from engine.trace.trace import Trace, load_kept_trace, load_trace, scored_trace_path
from engine.types import BITS, Bits

SENSITIVITIES = DerivedKind(
    "file of sensitivities", 1, "`tune profile --sensitivity` measures them again"
)

Losses = Mapping[Bits, float]
"""Loss of one unit (a layer or an expert) at each allowed precision."""


def with_table(config: EngineConfig, facts: ModelFacts, cache_folder: Path) -> EngineConfig:
    """The config with the table of its plan, if it has a plan but no table yet.

    by_sensitivity reads what `tune profile --sensitivity` stored in the cache folder, by_popularity
    the trace `precision.options.trace`, or the routing of the last evaluation at 16 bits; both need
    `precision.options.average_bits`. Raises ConfigError if one of these is missing.
    """
    precision = config.precision
    if precision.scheme not in PLANNED or "table" in precision.options:
        return config
    if precision.scheme == "by_layer":
        raise ConfigError(
            "precision.scheme = by_layer needs precision.options.table, one digit for each MoE "
            "layer: write it, or choose by_sensitivity"
        )
    average = _average(precision.options)
    if precision.scheme == "by_sensitivity":
        path = sensitivities_path(cache_folder, facts, config)
        found = load_sensitivities(path)
        if found is None:
            raise ConfigError(
                "precision.scheme = by_sensitivity needs this model's sensitivities at groups of "
                f"{precision.group_size}: measure them with `tune profile --model ... "
                "--sensitivity`"
            )
        table = spread_by_sensitivity(found, average, facts.experts)
    else:
        named = precision.options.get("trace")
        kept = scored_trace_path(cache_folder, facts.fingerprint)
        trace = load_trace(Path(str(named))) if named else load_kept_trace(kept)
        if trace is None:
            raise ConfigError(
                "precision.scheme = by_popularity needs precision.options.trace: record one with "
                "`tune trace` (a study that judges quality keeps one too)"
            )
        table = spread_by_popularity(trace, average, facts)
    options = {**precision.options, "table": write_table(table)}
    return config.overlay({f"precision.options.{name}": value for name, value in options.items()})


def spread_by_sensitivity(losses: Sequence[Losses], average: float, experts: int) -> Table:
    """Bits of each layer; every expert of a layer gets the same.

    losses: divergence in nats when only this layer has these bits.
    """
    return tuple((bits,) * experts for bits in spread(losses, average))


def spread_by_popularity(trace: Trace, average: float, facts: ModelFacts) -> Table:
    """Bits of each expert by its fraction of the tokens of a trace.

    The squared error of a group quantizer falls fourfold with every bit, so an expert's loss is its
    fraction times 4 ** -bits.
    """
    choices = [bits for bits in BITS if bits < 16 and str(bits) in facts.record_bytes]
    fractions = np.zeros((facts.moe_layers, facts.experts))
    for layer in range(facts.moe_layers):
        chosen = trace.experts[:, layer]
        fractions[layer] = np.bincount(chosen[chosen >= 0], minlength=facts.experts)
    fractions /= fractions.sum(axis=1, keepdims=True)
    units = [
        {bits: float(fraction) * 4.0**-bits for bits in choices} for fraction in fractions.ravel()
    ]
    flat = spread(units, average)
    width = facts.experts
    return tuple(tuple(flat[first : first + width]) for first in range(0, len(flat), width))


def spread(losses: Sequence[Losses], average: float) -> list[Bits]:
    """The bits of each unit: the least sum of losses found whose mean is at most `average`.

    Raises ConfigError if even the fewest bits exceed the average.
    """
    chosen = [min(curve) for curve in losses]
    capacity = average * len(losses) - sum(chosen)
    if capacity < -1e-9:
        raise ConfigError(
            f"an average of {average:g} bits is below the fewest, {sum(chosen) / len(chosen):g}: "
            "allow more"
        )
    steps = sorted(
        (-gain, number, unit, bits)
        for unit, curve in enumerate(losses)
        for number, (gain, bits) in enumerate(_hull(curve))
    )
    stopped: set[int] = set()
    for _, _, unit, bits in steps:
        more = bits - chosen[unit]
        if unit in stopped or more > capacity + 1e-9:
            stopped.add(unit)  # a later step of this unit requires this one
            continue
        capacity -= more
        chosen[unit] = bits
    return chosen


def sensitivities_path(cache_folder: Path, facts: ModelFacts, config: EngineConfig) -> Path:
    """The path of a model's layer sensitivities, by how records are quantized."""
    how = f"g{config.precision.group_size}-{optimize_name(config)}"
    return cache_folder / "sensitivities" / f"{facts.fingerprint}-{how}.json"


def save_sensitivities(path: Path, losses: Sequence[Losses], **facts: Any) -> None:
    """Write atomically. facts: how they were measured. Raises StorageError."""
    rows = [{str(bits): loss for bits, loss in curve.items()} for curve in losses]
    try:
        save_json(path, SENSITIVITIES, {"layers": rows, **facts})
    except OSError as error:
        raise StorageError(f"sensitivities cannot be kept in {path}: {error.strerror}") from None


def load_sensitivities(path: Path) -> list[Losses] | None:
    """Stored sensitivities, None if there are none or after damaged ones were dropped."""

    def parse(kept: Mapping[str, Any]) -> list[Losses]:
        rows = kept["layers"]
        found: list[Losses] = [
            {bits: float(row[str(bits)]) for bits in BITS if str(bits) in row} for row in rows
        ]
        if not all(found) or not all(math.isfinite(x) for curve in found for x in curve.values()):
            raise ValueError("a layer has no loss")
        return found

    return load_json(path, SENSITIVITIES, parse)


def _hull(curve: Losses) -> list[tuple[float, Bits]]:
    """Steps up the lower convex hull from the fewest bits: (loss saved per bit, bits), falling."""
    found: list[tuple[float, Bits]] = []
    at = min(curve)
    while True:
        gains = [
            ((curve[at] - curve[bits]) / (bits - at), bits)
            for bits in curve
            if bits > at and curve[bits] < curve[at]
        ]
        if not gains:
            return found
        gain, at = max(gains)
        found.append((gain, at))


def _average(options: Mapping[str, Any]) -> float:
    try:
        average = float(options["average_bits"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            "a plan of precisions needs precision.options.average_bits, such as 3, or "
            "precision.options.table"
        ) from None
    if not 2 <= average <= 16:
        raise ConfigError(f"precision.options.average_bits = {average:g}: allowed is 2 to 16")
    return average
