"""Simulated time: sources, queues, preemption; and what a replay reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.settings import EngineConfig
from engine.facts.timings import ModelTimings, ReadyTimings, RecordSource, at
from engine.policy.registry import QUEUES
from engine.replay.bound import best_hits
from engine.replay.simulate import replay
from engine.replay.tier import PartialTier
from engine.replay.transfers import SimulatedTransfers
from engine.types import ExpertId
from tests.engine.memory.test_plan import make_facts
from tests.engine.policy.made import make_trace

SHARED = RecordSource({1: 1000.0, 2: 1000.0}, 0.0, "shared")
QUEUED = RecordSource({1: 1000.0}, 0.5, "queued")
A, B, C = (ExpertId(0, index) for index in range(3))


def simulated(queue: str = "two_priority", workers: int = 1) -> SimulatedTransfers:
    return SimulatedTransfers(QUEUES[queue](), workers=workers, chunk_bytes=4096)  # type: ignore[index]


def test_a_record_takes_its_bytes_over_the_rate() -> None:
    moving = simulated()
    transfer = moving.submit(1.0, A, 0, 8192, SHARED, demanded=True)
    assert moving.wait(1.0, [transfer]) == pytest.approx(1.0 + 8.192)


def test_a_record_crosses_a_link_in_one_chunk() -> None:
    moving = simulated()
    transfer = moving.submit(0.0, A, 0, 8192, QUEUED, demanded=True)
    assert moving.wait(0.0, [transfer]) == pytest.approx(8.192 + 0.5)


def test_a_record_in_several_extents_pays_for_a_chunk_of_each() -> None:
    source = RecordSource({1: 1000.0}, 0.5, "shared", extents=3)
    moving = simulated()
    transfer = moving.submit(0.0, A, 0, 3000, source, demanded=True)
    assert moving.wait(0.0, [transfer]) == pytest.approx(3.0 + 3 * 0.5)


LINK = RecordSource({1: 1000.0}, 0.0, "queued")
DISK = RecordSource({1: 100.0, 2: 150.0}, 0.0, "shared")


def test_what_a_tier_does_not_hold_is_read_from_the_disk_before_it_crosses_the_link() -> None:
    moving, tier = simulated(), PartialTier([A, B, C], 2, DISK, 1000)
    for record, seconds in ((A, 1.0), (C, 11.0), (B, 11.0), (C, 1.0)):  # B was used longest ago
        transfer = moving.submit(100.0, record, 0, 1000, LINK, demanded=True, tier=tier)
        assert moving.wait(100.0, [transfer]) == pytest.approx(100.0 + seconds), record
        moving = simulated()
    assert tier.read_s == pytest.approx(10.0)


def test_a_record_that_is_held_crosses_the_link_while_another_is_read() -> None:
    moving, tier = simulated(workers=3), PartialTier([A, B, C], 1, DISK, 1000)
    held, first, second = (
        moving.submit(0.0, record, slot, 1000, LINK, demanded=True, tier=tier)
        for slot, record in enumerate((A, B, C))
    )
    assert moving.wait(0.0, [held]) == pytest.approx(1.0)
    both_read = 1000 / 75  # 150 bytes a second for the two together
    assert moving.wait(0.0, [first]) == pytest.approx(both_read + 1.0)
    assert moving.wait(0.0, [second]) == pytest.approx(both_read + 2.0), "the link carries one"
    assert moving.moved_bytes == 3000


def test_what_moved_before_a_span_does_not_count_for_it() -> None:
    moving = simulated()
    moving.submit(0.0, A, 0, 1600, SHARED, demanded=True)  # until 1.6
    assert moving.moving_fraction(0.0, 1.0) == pytest.approx(1.0)
    assert moving.moving_fraction(1.4, 1.8) == pytest.approx(0.5)
    assert moving.moving_fraction(1.8, 2.8) == 0.0


def test_a_demand_overtakes_a_prediction_at_the_next_chunk() -> None:
    moving = simulated()
    predicted = moving.submit(0.0, A, 0, 40960, SHARED, demanded=False)
    moving.advance(1.0)  # the first chunk is on its way
    demanded = moving.submit(1.0, B, 1, 4096, SHARED, demanded=True)
    assert moving.wait(1.0, [demanded]) == pytest.approx(2 * 4.096)
    assert moving.wait(9.0, [predicted]) == pytest.approx(11 * 4.096)


def test_first_in_first_out_makes_the_demand_wait() -> None:
    moving = simulated("fifo")
    moving.submit(0.0, A, 0, 40960, SHARED, demanded=False)
    demanded = moving.submit(1.0, B, 1, 4096, SHARED, demanded=True)
    assert moving.wait(1.0, [demanded]) == pytest.approx(11 * 4.096)


def test_a_slot_that_is_given_away_cancels_what_was_coming() -> None:
    moving = simulated()
    first = moving.submit(0.0, A, 0, 40960, SHARED, demanded=True)
    second = moving.submit(0.0, B, 0, 4096, SHARED, demanded=True)
    assert moving.wait(0.0, [second]) < 40
    moving.advance(1000.0)
    assert first.ready_at is None


@given(
    jobs=st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 50_000), st.booleans()), min_size=1, max_size=12
    ),
    queue=st.sampled_from(sorted(QUEUES)),
    source=st.sampled_from([SHARED, QUEUED]),
    workers=st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_record_arrives_once_and_no_byte_is_lost(
    jobs: list[tuple[float, int, bool]], queue: Any, source: RecordSource, workers: int
) -> None:
    moving = simulated(queue, workers)
    now, transfers = 0.0, []
    for slot, (gap, size, demanded) in enumerate(jobs):
        now += gap
        transfers.append(
            moving.submit(now, ExpertId(0, slot), slot, size, source, demanded=demanded)
        )
    total = sum(size for _, size, _ in jobs)
    moving.advance(now + total + 100.0 * len(jobs))
    assert all(t.ready_at is not None and t.arrived == t.chunks for t in transfers)
    assert moving.moved_bytes == pytest.approx(total)
    assert max(t.ready_at or 0 for t in transfers) >= total / 1000.0 * (1 - 1e-9)


def timings(bytes_per_s: float) -> ModelTimings:
    curve = {1: 1e-3, 64: 4e-3}
    return ModelTimings(
        model="m",
        device="cpu",
        sources={16: RecordSource({1: bytes_per_s}, 0.0, "shared")},
        non_expert_s=curve,
        router_s=curve,
        layer_s={16: curve},
        expert_s={16: curve},
        pass_s=curve,
        policy_s={1: 1e-4},
        submit_s=0.0,
        gate_lookahead_s=1e-4,
        wake_s={16: 0.0},
        restart_s={16: 0.0},
        contention={16: 1.0},
    )


def test_host_and_device_slow_each_other_down() -> None:
    rows = [[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[4, 1], [5, 3]], [[0, 1], [2, 3]]]
    trace = make_trace(rows, tokens=[(1,)] * 4)
    facts = make_facts(layers=2, moe_layers=2, experts=8, experts_per_token=2)
    config = EngineConfig().overlay(
        {
            "cache.expert_bytes": "50%",
            "placement.name": "host_split",
            "placement.host_fraction": 1.0,
        }
    )

    def seconds(factor: float, host_expert_s: float) -> float:
        profile = replace(
            timings(1e6),
            host_expert_s={16: {1: host_expert_s}},
            host_contention={16: factor},
        )
        return sum(t.seconds for t in replay(config, facts, trace, profile).times)

    # A host that takes no time disturbs nobody; one that takes long is waited for twice as long.
    assert seconds(2.0, 0.0) == pytest.approx(seconds(1.0, 0.0))
    slow = seconds(1.0, 1.0)
    assert seconds(2.0, 1.0) == pytest.approx(2 * slow, rel=0.05)


def small_replay(speed: float, **overlay: Any) -> Any:
    rows = [[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[4, 1], [5, 3]], [[0, 1], [2, 3]]]
    trace = make_trace(rows, tokens=[(1,)] * 4)
    facts = make_facts(layers=2, moe_layers=2, experts=8, experts_per_token=2)
    config = EngineConfig().overlay({"cache.expert_bytes": "50%", **overlay})
    return replay(config, facts, trace, timings(speed)), trace


def test_micro_batches_that_decode_together_pass_what_surrounds_experts_once() -> None:
    rows = [[[0, 1], [2, 3]]] * 4
    trace = make_trace(rows, tokens=[(2,), (1, 1)])
    facts = make_facts(layers=2, moe_layers=2, experts=8, experts_per_token=2)
    config = EngineConfig().overlay({"cache.expert_bytes": "100%", "batch.count": 2})

    def seconds(*, together: bool) -> list[float]:
        profile = replace(timings(1e6), together=together)
        times = replay(config, facts, trace, profile).times
        return [item.activities["non_expert"] for item in times]

    # two layers; one token takes 1 ms, two take 1 + 3 / 63 ms
    assert seconds(together=False) == pytest.approx([2.0952e-3, 4e-3], rel=1e-3)
    assert seconds(together=True) == pytest.approx([2.0952e-3, 2.0952e-3], rel=1e-3)


def test_parts_of_the_time_sum_to_it() -> None:
    found, _ = small_replay(1e6)
    for item in found.times:
        assert sum(item.activities.values()) == pytest.approx(item.seconds)
    metrics = found.metrics()
    assert metrics["stall_ms_per_token"] > 0


@pytest.mark.parametrize("placement", ["device", "host_split"])
def test_more_host_memory_is_never_slower_and_without_any_the_disk_is_what_counts(
    placement: str,
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((24, 2, 8)).argsort(-1)[..., :2]
    trace = make_trace(rows, tokens=[(1,)] * 24)
    facts = make_facts(layers=2, moe_layers=2, experts=8, experts_per_token=2)
    profile = replace(
        timings(1.0),
        sources={16: RecordSource({1: 1e8}, 0.0, "queued")},
        disk_sources={16: RecordSource({1: 1e7}, 0.0, "shared")},
        host_expert_s={16: {1: 1e-3}},
    )

    def seconds(host_bytes: Any, profile: ModelTimings = profile) -> float:
        config = EngineConfig().overlay(
            {
                "device.name": "cuda:0",
                "cache.expert_bytes": "25%",
                "host.bytes": host_bytes,
                "placement.name": placement,
                "placement.host_fraction": 0.5,
            }
        )
        return sum(item.seconds for item in replay(config, facts, trace, profile).times)

    some = [seconds(size) for size in (0, "50%", "75%", "auto")]
    assert some == sorted(some, reverse=True)
    assert len(set(some)) == 4
    if placement == "device":
        only_disk = replace(profile, sources=profile.disk_sources, disk_sources={})
        assert seconds(0) == seconds("auto", only_disk)
    only_link = replace(profile, disk_sources={})
    assert seconds("auto") == seconds("50%", only_link), "nothing is known of the disk"


def test_a_faster_disk_and_more_slots_are_never_slower() -> None:
    few = {"cache.expert_bytes": "25%"}
    slow, _ = small_replay(1e5, **few)
    fast, _ = small_replay(1e7, **few)
    assert sum(t.seconds for t in fast.times) < sum(t.seconds for t in slow.times)
    everything, _ = small_replay(1e5, **{"cache.expert_bytes": "100%"})
    assert sum(t.seconds for t in everything.times) < sum(t.seconds for t in slow.times)


def test_no_policy_hits_more_than_the_bound() -> None:
    found, trace = small_replay(1e6)
    bound = best_hits(trace, found.policy.cache.slots_by_pool)
    assert found.policy.counters.hits["decode"] <= bound.hits["decode"]
    assert bound.lookups["decode"] == sum(
        len(trace.demands(n, layer)) for n in range(4) for layer in range(2)
    )


@given(stream=st.lists(st.integers(0, 4), min_size=1, max_size=9), slots=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_bound_is_what_an_exhaustive_search_finds(stream: list[int], slots: int) -> None:
    trace = make_trace([[[expert]] for expert in stream], tokens=[(1,)] * len(stream))

    def most(position: int, kept: frozenset[int]) -> int:
        if position == len(stream):
            return 0
        wanted = stream[position]
        both = kept | {wanted}
        choices = [both] if len(both) <= slots else [both - {e} for e in both]
        return (wanted in kept) + max(most(position + 1, choice) for choice in choices)

    assert best_hits(trace, (slots,)).hits["decode"] == most(0, frozenset())


def test_times_between_measured_ones_lie_on_a_line_and_beyond_them_do_not_fall() -> None:
    curve = {1: 1.0, 3: 2.0, 5: 1.5}
    assert at(curve, 2) == pytest.approx(1.5)
    assert at(curve, 3) == 2.0
    assert at(curve, 100) == 1.5
    assert at({}, 4) == 0.0


def test_a_layer_that_finds_all_experts_is_passed_without_asking() -> None:
    rows = [[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[0, 1], [2, 3]], [[4, 1], [2, 3]]]
    trace = make_trace(rows, tokens=[(1,)] * 4)
    facts = make_facts(layers=2, moe_layers=2, experts=8, experts_per_token=2)
    config = EngineConfig().overlay({"cache.expert_bytes": "100%"})
    asked = replay(config, facts, trace, timings(1e6)).times
    curve = {1: 1e-5}
    profile = replace(timings(1e6), ready=ReadyTimings(curve, {1: 1e-6}, {16: curve}))
    passed = replay(config, facts, trace, profile).times
    # the third pass finds all experts of both layers, the fourth one those of the second
    passing = {"other": 1e-3, "non_expert": 2e-5, "policy": 2e-6, "compute": 4e-5}
    assert dict(passed[2].activities) == pytest.approx(passing)
    assert passed[2].seconds == pytest.approx(sum(passing.values()))
    assert passed[0].activities == asked[0].activities
    half = {n: asked[3].activities[n] / 2 + passing[n] / 2 for n in ("non_expert", "compute")}
    for name, seconds in half.items():
        assert passed[3].activities[name] == pytest.approx(seconds)
    # whoever is asked before each layer takes as long as before
    config = config.overlay({"prefetch.predictor": "popularity", "prefetch.depth": 1})
    assert [t.seconds for t in replay(config, facts, trace, profile).times] == pytest.approx(
        [t.seconds for t in replay(config, facts, trace, timings(1e6)).times]
    )
