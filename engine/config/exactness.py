"""How much each setting can change what a run computes, and which settings affect quality.

In: a config. Out: its lossy settings by path. Pure: no torch, no clock, no machine access.
"""

from __future__ import annotations

from typing import Any

from engine.config.settings import OPTIMIZE, EngineConfig, optimize_name
from engine.types import PrecisionName, SensitivityClass

SENSITIVITY: dict[str, SensitivityClass] = {
    "cache.": "exact",
    "prefetch.": "exact",
    "transfer.": "exact",
    "io.": "exact",
    "cpu.": "exact",
    "serve.": "rounding",
    "serve.response_cache_entries": "exact",
    "host.": "exact",
    "budget.": "exact",
    "plan.": "exact",
    "batch.order": "exact",
    "batch.": "rounding",
    "prefill.": "rounding",
    "placement.": "rounding",
    "placement.embeddings": "exact",
    "kernel.": "lossy_static",
    "device.": "lossy_static",
    "device.context_bytes": "exact",
    "device.correction_bytes": "exact",
    "compute.": "lossy_static",
    "compute.capture": "rounding",
    "precision.": "lossy_static",
    "kv.max_tokens": "exact",
    "kv.bits": "lossy_static",
    "kv.keep_fraction": "lossy_static",
    "kv.placement": "exact",
    "kv.elastic": "exact",
}


ON_MISS: tuple[PrecisionName, ...] = ("popularity_mass", "gate_threshold")
"""Schemes whose outputs depend on which experts happen to be resident."""

_MISS_PATHS = ("cache.", "prefetch.", "transfer.", "batch.")


def sensitivity(path: str) -> SensitivityClass:
    """How much a setting can change outputs (the longest matching prefix decides)."""
    matches = [prefix for prefix in SENSITIVITY if path.startswith(prefix)]
    return SENSITIVITY[max(matches, key=len)]


def rounds_activations(config: EngineConfig) -> bool:
    """Whether something is multiplied by activations of 8 bits."""
    precision = config.precision
    coded = min(precision.bits, precision.non_expert_bits) != 16 or precision.prequantized
    return coded and precision.activation_bits == 8


def lossy_settings(config: EngineConfig) -> dict[str, Any]:
    """Every setting that can change what this config computes beyond rounding, by path.

    If precision is decided on a miss, this includes every setting that decides what is a miss. If
    kv.bits is below 16 or kv.keep_fraction below 1, it includes prefill.chunk_tokens: tokens of one
    chunk see each other's unquantized, unmerged keys and values. Settings without effect under the
    config's scheme are left out.
    """
    on_miss = config.precision.scheme in ON_MISS
    found = {
        path: value
        for path, value in config.flat().items()
        if sensitivity(path).startswith("lossy") or (on_miss and path.startswith(_MISS_PATHS))
    }
    grouped = config.precision.bits != 16 and not config.precision.prequantized
    if not grouped and config.precision.non_expert_bits != 4:
        found.pop("precision.group_size")
    if not grouped and config.precision.non_expert_bits == 16:
        found.pop("kernel.crossover_tokens")
    if not rounds_activations(config):
        found.pop("precision.activation_bits")
    if not config.precision.prequantized:
        found.pop("precision.prequantized")
    given = dict(found.pop("precision.options"))
    given.pop(OPTIMIZE, None)
    options = given if on_miss else {n: given[n] for n in ("table",) if n in given}
    if not on_miss:
        for name in (
            "low_bits",
            "low_group_size",
            "low_bits_threshold",
            "skip_threshold",
            "low_mass",
        ):
            found.pop(f"precision.{name}")
    planned = not on_miss and config.precision.scheme != "uniform"
    if not planned:
        options.pop("table", None)
    fewest = min(config.precision.bits, config.precision.low_bits if on_miss else 16)
    if planned or fewest <= 4:
        options[OPTIMIZE] = optimize_name(config)
    if options:
        found["precision.options"] = options
    if config.kv.keep_fraction == 1:
        found.pop("kv.keep_fraction")
    if config.kv.bits != 16 or config.kv.keep_fraction != 1:
        found["prefill.chunk_tokens"] = config.prefill.chunk_tokens
    return found
