"""The native clock gives the bits of the plain one, and decisions serve every config they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.settings import EngineConfig
from engine.facts.timings import ModelTimings, ReadyTimings, RecordSource
from engine.memory.plan import resolve
from engine.policy.registry import ORDERS, QUEUES
from engine.replay import native_clock
from engine.replay.decisions import Decisions, decision_key
from engine.replay.simulate import replay
from engine.trace.trace import Trace
from tests.engine.memory.test_plan import make_facts
from tests.engine.policy.made import make_trace

LAYERS, EXPERTS, CHOSEN = 3, 8, 2
FACTS = make_facts(
    layers=LAYERS, moe_layers=LAYERS, experts=EXPERTS, experts_per_token=CHOSEN, hidden_size=512
)
needs_library = pytest.mark.skipif(not native_clock.is_available(), reason="no native library")


def curve(first: float, more: float) -> dict[int, float]:
    return {1: first, 3: first + more, 16: first + 9 * more}


def timings(seed: int, *, host: bool, sharing: Any, disk: bool = False) -> ModelTimings:
    """Random, but of such sizes that transfers and products overlap."""
    rng = np.random.default_rng(seed)
    some = rng.uniform(0.5, 1.5, 12) * 1e-3
    bits = (16, 8, 4)
    return ModelTimings(
        model="m",
        device="cpu",
        sources={
            b: RecordSource({1: 1e9 * b, 2: 1.5e9 * b}, some[0] / 10, sharing, extents=1 + b // 16)
            for b in bits
        },
        non_expert_s=curve(some[1], some[2]),
        router_s=curve(some[2] / 9, some[3] / 9),
        layer_s={b: curve(some[3], some[4] / b) for b in bits},
        expert_s={b: curve(some[4] / b, some[5] / b) for b in bits},
        pass_s=curve(some[5], some[6]),
        policy_s=curve(some[6] / 9, some[7] / 9),
        submit_s=some[7] / 50,
        gate_lookahead_s=some[8] / 20,
        wake_s=dict.fromkeys(bits, some[9] / 20),
        restart_s=dict.fromkeys(bits, some[10] / 20),
        contention={16: 1.0, 8: 1.3, 4: 1.1},
        host_expert_s={b: curve(some[11], some[1]) for b in bits} if host else {},
        host_start_s=dict.fromkeys(bits, some[2] / 20) if host else {},
        host_contention=dict.fromkeys(bits, 1.2) if host else {},
        disk_sources={
            b: RecordSource({1: 1e8 * b, 2: 1.2e8 * b}, some[1] / 10, "shared", extents=1 + b // 16)
            for b in bits
        } if disk else {},
        together=bool(seed % 2),
        restart_non_expert_s=some[11] / 30,
        ready=ReadyTimings(
            curve(some[9], some[0]), curve(some[8] / 9, some[1] / 9),
            {b: curve(some[10] / b, some[2] / b) for b in bits},
        ) if seed % 3 else None,
    )  # fmt: skip


def trace(seed: int, batches: int) -> Trace:
    """A prompt of 4 tokens for each micro-batch, then 5 steps; the next routers choose nearly what
    they will choose."""
    rng = np.random.default_rng(seed)
    tokens = [(4,) * batches, *[(1,) * batches] * 5]
    rows = sum(map(sum, tokens))
    chosen = rng.random((rows, LAYERS, EXPERTS)).argsort(-1)[..., :CHOSEN]
    ahead = np.full((rows, LAYERS, 2, EXPERTS), -1)
    for layer in range(LAYERS):
        for distance in range(2):
            if layer + 1 + distance < LAYERS:
                order = rng.random((rows, EXPERTS)).argsort(-1)
                ahead[:, layer, distance] = order
                ahead[: rows // 2, layer, distance, :CHOSEN] = chosen[
                    : rows // 2, layer + 1 + distance
                ]
    made = make_trace(chosen, tokens=tokens, groups=[0, 0, 0, 1, 1, 1], seed=seed)
    return replace(made, look_ahead=ahead.astype(np.int16))


CONFIGS = st.fixed_dictionaries(
    {
        "cache.expert_bytes": st.sampled_from(["25%", "40%", "60%", "100%"]),
        "cache.eviction": st.sampled_from(["lru", "none", "lfu", "hobbit"]),
        "cache.scope": st.sampled_from(["layer", "shared"]),
        "prefetch.depth": st.sampled_from([0, 1, 2]),
        "precision.bits": st.sampled_from([16, 8, 4]),
        "batch.order": st.sampled_from(sorted(ORDERS)),
        "transfer.queue": st.sampled_from(sorted(QUEUES)),
        "transfer.in_flight": st.integers(1, 3),
        "transfer.chunk_bytes": st.sampled_from([4096, 1 << 18, 1 << 20]),
        "placement.name": st.sampled_from(["device", "host_below", "host_split", "earliest"]),
    }
)


def config_of(values: dict[str, Any], batches: int) -> EngineConfig:
    predictor = "next_gate" if values["prefetch.depth"] else "none"
    return EngineConfig().overlay(
        {**values, "prefetch.predictor": predictor, "batch.count": batches}
    )


def two_precisions(values: dict[str, Any]) -> dict[str, Any]:
    return {
        **values, "precision.bits": 8, "precision.scheme": "gate_threshold",
        "precision.low_bits": 4,
    }  # fmt: skip


@needs_library
@given(
    values=CONFIGS,
    batches=st.integers(1, 3),
    seed=st.integers(0, 50),
    host=st.booleans(),
    sharing=st.sampled_from(["shared", "queued"]),
    mixed=st.booleans(),
    together=st.booleans(),
    host_bytes=st.sampled_from([None, 0, "30%", "70%", "auto"]),
)
@settings(max_examples=160, deadline=None)
def test_both_clocks_agree_to_the_bit(
    values: dict[str, Any],
    batches: int,
    seed: int,
    host: bool,
    sharing: str,
    mixed: bool,
    together: bool,
    host_bytes: Any,
) -> None:
    config = config_of(two_precisions(values) if mixed else values, batches)
    if host_bytes is not None:
        config = config.overlay({"device.name": "cuda:0", "host.bytes": host_bytes})
    given_trace = trace(seed, batches)
    profile = timings(seed, host=host, sharing=sharing, disk=host_bytes is not None)
    profile = replace(profile, together=together)

    def run() -> Any:
        found = replay(config, FACTS, given_trace, profile, warm=[0, 1, 2])
        times = [(t.number, t.seconds, dict(t.activities), t.moved_bytes) for t in found.times]
        return times, found.in_time, found.prefetched_demanded, found.metrics()

    native = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_clock, "is_available", lambda: False)
        assert native == run()


@needs_library
@given(values=CONFIGS, seed=st.integers(0, 20), other=CONFIGS, mixed=st.booleans())
@settings(max_examples=120, deadline=None)
def test_decisions_with_the_same_key_are_the_same(
    values: dict[str, Any], seed: int, other: dict[str, Any], mixed: bool
) -> None:
    costs = ("precision.bits", "transfer.queue", "transfer.in_flight", "transfer.chunk_bytes")
    changed = {**values, **{name: other[name] for name in costs}}
    if mixed:
        values, changed = two_precisions(values), two_precisions(changed)
    first, second = config_of(values, 2), config_of(changed, 2)
    given_trace, profile = trace(seed, 2), timings(seed, host=False, sharing="shared")
    known: dict[str, Decisions] = {}
    replay(first, FACTS, given_trace, profile, known=known)
    same = decision_key(resolve(first, FACTS)) == decision_key(resolve(second, FACTS))
    reused = replay(second, FACTS, given_trace, profile, known=known)
    assert len(known) == (1 if same else 2)
    assert reused.metrics() == replay(second, FACTS, given_trace, profile).metrics()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("cache.eviction", "lfu"),
        ("cache.expert_bytes", "60%"),
        ("prefetch.depth", 2),
        ("batch.count", 2),
        ("placement.name", "host_below"),
        ("precision.scheme", "gate_threshold"),
    ],
)
def test_what_decides_is_part_of_the_key(path: str, value: Any) -> None:
    plain = {"cache.expert_bytes": "40%", "precision.bits": 8, "precision.low_bits": 4}
    one, other = EngineConfig().overlay(plain), EngineConfig().overlay({**plain, path: value})
    assert decision_key(resolve(one, FACTS)) != decision_key(resolve(other, FACTS))
