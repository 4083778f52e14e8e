"""Two precisions in one run: what is loaded coarser, what is skipped, what it does to logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.errors import ConfigError
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch

PROMPT = torch.arange(3, 35)[None]
BASE: dict[str, Any] = {
    "kv.max_tokens": 64,
    "cache.expert_bytes": "50%",
    "precision.bits": 8,
    "precision.low_bits": 2,
}
THRESHOLDS = {"precision.scheme": "gate_threshold"}


@pytest.fixture
def opened(tiny_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tiny_folder, CpuDevice(), tmp_path / "cache")
    yield engine
    engine.close()


def logits_of(engine: Engine, overlay: dict[str, Any]) -> torch.Tensor:
    """Of the prompt and three more tokens."""
    engine.configure(EngineConfig().overlay({**BASE, **overlay}))
    batch = MicroBatch(PROMPT)
    rows = [engine.prefill([batch])[0]]
    for token in (5, 9, 11):
        batch.tokens = torch.tensor([[token]])
        rows.append(engine.forward([batch], "decode")[0])
    return torch.cat(rows)


def test_thresholds_that_ask_for_high_always_change_no_bit(opened: Engine) -> None:
    uniform = logits_of(opened, {})
    same = logits_of(
        opened, {**THRESHOLDS, "precision.low_bits_threshold": 1.0, "precision.skip_threshold": 1.0}
    )
    assert torch.equal(uniform, same)
    assert opened.residency.counters.low == 0


def test_small_gate_weights_come_coarser_or_not_at_all(opened: Engine) -> None:
    uniform = logits_of(opened, {})
    coarse = logits_of(
        opened, {**THRESHOLDS, "precision.low_bits_threshold": 0.0, "precision.skip_threshold": 1.0}
    )
    counters = opened.residency.counters
    assert counters.low > 0
    assert counters.skipped == 0
    assert not torch.equal(uniform, coarse)
    logits_of(
        opened, {**THRESHOLDS, "precision.low_bits_threshold": 0.0, "precision.skip_threshold": 0.0}
    )
    counters = opened.residency.counters
    assert counters.skipped > 0
    lookups = sum(counters.hits.values()) + sum(counters.misses.values())
    assert counters.skipped < lookups


def test_a_coarse_resident_is_loaded_again_where_high_is_wanted(opened: Engine) -> None:
    overlay = {
        "precision.scheme": "popularity_mass",
        "cache.expert_bytes": "100%",
        "precision.low_mass": 1.0,
    }
    logits_of(opened, overlay)  # prefill loads misses low, decode wants them high
    counters = opened.residency.counters
    assert counters.low > 0
    assert counters.misses["decode"] > 0
    opened.configure(EngineConfig().overlay({**BASE, **overlay}))
    moved = opened.transfers.counters
    batch = MicroBatch(PROMPT)
    opened.prefill([batch])
    low = opened.live.stores[2].record.size_bytes
    assert moved.moved_bytes % low == 0, "every miss of prefill came as a low record"


def test_a_scheme_without_a_low_precision_is_refused(opened: Engine) -> None:
    with pytest.raises(ConfigError, match="low_bits"):
        logits_of(opened, {**THRESHOLDS, "precision.low_bits": 0})


def test_quality_depends_on_the_cache_only_where_precision_does() -> None:
    uniform = EngineConfig()
    assert "cache.expert_bytes" not in lossy_settings(uniform)
    on_miss = uniform.overlay({**THRESHOLDS, "precision.low_bits": 2, "precision.bits": 4})
    found = lossy_settings(on_miss)
    assert {"cache.expert_bytes", "prefetch.depth", "transfer.queue", "batch.count"} <= set(found)
    assert "precision.low_bits_threshold" in found
    assert "precision.low_bits_threshold" not in lossy_settings(uniform)
