"""The range of every setting that is a number.

Pure: no torch, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import ConfigError
from engine.types import MOST_BYTES

RANGES: dict[str, tuple[float, float]] = {
    "cache.shallow_layers": (-1, 10_000),
    "precision.low_group_size": (16, 128),
    "cache.low_bits_fraction": (0.0, 0.9),
    "precision.low_bits_threshold": (0.0, 1.0),
    "precision.skip_threshold": (0.0, 1.0),
    "precision.low_mass": (0.0, 1.0),
    "placement.host_tokens": (0, 1 << 16),
    "placement.host_fraction": (0.0, 1.0),
    "prefetch.depth": (0, 8),
    "prefetch.extra_experts": (0, 64),
    "transfer.chunk_bytes": (4096, 1 << 30),
    "transfer.in_flight": (1, 8),
    "precision.group_size": (16, 128),
    "kernel.crossover_tokens": (0, 1 << 20),
    "cpu.threads": (0, 256),
    "batch.count": (1, 256),
    "batch.size": (1, 256),
    "prefill.chunk_tokens": (1, 1 << 16),
    "host.bytes": (0, MOST_BYTES),
    "kv.max_tokens": (2, 1 << 24),
    "kv.keep_fraction": (0.01, 1.0),
    "serve.prefix_cache_tokens": (0, 1 << 24),
    "serve.response_cache_entries": (0, 1 << 24),
    "io.threads": (1, 32),
    **dict.fromkeys(
        ("budget.vram_bytes", "budget.ram_bytes", "budget.disk_bytes"), (0, MOST_BYTES)
    ),
    "device.context_bytes": (0, MOST_BYTES),
    "device.correction_bytes": (-(1 << 40), 1 << 40),
}


def check_ranges(flat: Mapping[str, Any]) -> None:
    """Raise ConfigError for a number outside its range; a word such as `auto` has none. flat: the
    complete config by path."""
    for path, (low, high) in RANGES.items():
        value = flat[path]
        if not isinstance(value, str) and not low <= value <= high:
            raise ConfigError(f"{path} = {value}: allowed is {low} to {high}")
