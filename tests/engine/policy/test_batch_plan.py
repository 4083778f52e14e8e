"""The planner: enough micro-batches to hide transfers, and what bottleneck."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.errors import ConfigError
from engine.facts.timings import ModelTimings, RecordSource
from engine.policy.batch_plan import MOST_MICRO_BATCHES, IoComputePlan, host_fraction
from tests.engine.memory.test_plan import make_facts

CURVE = {1: 1e-3, 64: 1e-3}


def timings(bytes_per_s: float, **changes: Any) -> ModelTimings:
    made = ModelTimings(
        model="m",
        device="cpu",
        sources={16: RecordSource({1: bytes_per_s}, 0.0, "shared")},
        non_expert_s=CURVE,
        router_s={1: 0.0},
        layer_s={16: {1: 0.0}},
        expert_s={16: {1: 1e-4, 64: 1e-4}},
        pass_s={1: 0.0},
        policy_s={1: 0.0},
        submit_s=0.0,
        gate_lookahead_s=0.0,
        wake_s={16: 0.0},
        restart_s={16: 0.0},
        contention={16: 1.0},
    )
    return dataclasses.replace(made, **changes)


def test_a_slower_disk_asks_for_more_micro_batches() -> None:
    config = EngineConfig().overlay({"cache.eviction": "none", "plan.name": "io_compute"})
    counts = []
    for speed in (1e12, 2e9, 1e9):
        planned = IoComputePlan().plan(config, make_facts(), timings(speed))
        counts.append(planned.config.batch.count)
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] > 1


def test_the_smallest_number_that_hides_transfers_is_taken() -> None:
    facts, config = make_facts(), EngineConfig().overlay({"cache.eviction": "none"})
    planned = IoComputePlan().plan(config, facts, timings(2e9))
    assert planned.bottleneck == "compute"
    count = planned.config.batch.count
    assert count > 1
    assert "hides" in planned.reason
    # one less would not have hidden them: a layer's misses take longer than its compute
    demanded = facts.experts * (1 - (1 - facts.experts_per_token / facts.experts) ** (count - 1))
    work = (count - 1) * 1e-3 + demanded * 1e-4
    assert work < demanded * facts.record_bytes["16"] / 2e9


def test_what_cannot_be_hidden_is_said_to_bind() -> None:
    slow = EngineConfig().overlay({"cache.eviction": "none"})
    planned = IoComputePlan().plan(slow, make_facts(), timings(1e3))
    assert planned.bottleneck == "transfer"
    assert planned.config.batch.count == MOST_MICRO_BATCHES
    assert "does not hide" in planned.reason


def test_without_timings_it_says_what_to_run() -> None:
    with pytest.raises(ConfigError, match="tune profile"):
        IoComputePlan().plan(EngineConfig(), make_facts(), None)


def test_the_split_follows_the_rates() -> None:
    record = make_facts().record_bytes["16"]
    even = timings(record / 1e-3, host_expert_s={16: {1: 1e-3}})
    assert host_fraction(EngineConfig(), make_facts(), even) == pytest.approx(0.5)
    slow_link = timings(record / 3e-3, host_expert_s={16: {1: 1e-3}})
    assert host_fraction(EngineConfig(), make_facts(), slow_link) == pytest.approx(0.75)
