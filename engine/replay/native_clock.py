"""The clock of a replay in native code (sources/replay.cpp): the bits of engine.replay.clock."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.facts.timings import Curve, ModelTimings, ReadyTimings, at
from engine.memory.records import record_bytes_of
from engine.native import library
from engine.policy.registry import ORDERS, QUEUES
from engine.precision.table import run_bits
from engine.replay.clock import PassTime, may_pass_unasked
from engine.replay.decisions import Decisions
from engine.replay.tier import PartialTier, partial_tiers, record_source

Doubles = NDArray[np.float64]
_ARRAYS = (
    "pass_s", "non_expert_s", "router_s", "policy_s", "layer_s", "expert_s", "host_expert_s",
    "ready_non_expert_s", "ready_policy_s", "ready_expert_s",
    "record_chunks", "record_chunk_bytes", "chunk_s", "rates", "queued",
    "tier_records", "tier_filled", "disk_bytes", "disk_rates", "disk_s",
)  # fmt: skip
_WHOLE = (
    "precisions", "tier_most", "most_tokens", "workers", "slots", "watches_gate", "two_priority",
    "order", "has_ready",
)  # fmt: skip
_SECONDS = (
    "submit_s", "gate_lookahead_s", "wake_s", "restart_s", "restart_non_expert_s", "host_start_s",
    "contention", "host_contention",
)  # fmt: skip
_ACTIVITIES = ("other", "non_expert", "policy", "router", "compute", "wait")
_PAGE = 4096


class _Timings(ctypes.Structure):
    """ReplayTimings of sources/replay.h, field for field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in _WHOLE),
        *((name, ctypes.c_double) for name in _SECONDS),
    ]


def is_available() -> bool:
    """Whether the native library is loaded."""
    return library.is_available()


def run(
    decisions: Decisions, config: EngineConfig, facts: ModelFacts, profile: ModelTimings
) -> tuple[list[PassTime], int, int]:
    """The time of every pass, and how many predicted transfers arrived in time, of how many that
    were demanded."""
    arrays = _curves(decisions, config, profile) | _sources(config, facts, profile)
    arrays |= _tiers(config, facts, profile)
    rows: Doubles = np.zeros((len(decisions.passes), 3 + len(_ACTIVITIES)))
    arrivals = np.zeros(2, dtype=np.int64)
    timings = _Timings(
        **{name: arrays[name].ctypes.data for name in _ARRAYS},
        **_numbers(decisions, config, profile),
        precisions=len(run_bits(config)),
        tier_most=arrays["tier_filled"].shape[1],
    )
    events = decisions.events
    stuck = library.function("replay")(
        ctypes.byref(timings),
        events.ctypes.data,
        len(events),
        rows.ctypes.data,
        arrivals.ctypes.data,
    )
    assert not stuck, "waiting for what was cancelled"
    return _times(decisions, rows), int(arrivals[1]), int(arrivals[0])


def _curves(
    decisions: Decisions, config: EngineConfig, profile: ModelTimings
) -> dict[str, NDArray[Any]]:
    """Seconds at every number of tokens that is asked for."""
    bits = run_bits(config)
    own = config.precision.bits

    def filled(curve: Curve) -> Doubles:
        found: Doubles = np.zeros(decisions.tokens[-1] + 1)
        found[list(decisions.tokens)] = [at(curve, tokens) for tokens in decisions.tokens]
        return found

    ready = profile.ready or ReadyTimings({}, {}, {})
    return {
        "pass_s": filled(profile.pass_s),
        "non_expert_s": filled(profile.non_expert_s),
        "router_s": filled(profile.router_s),
        "policy_s": filled(profile.policy_s),
        "layer_s": filled(profile.layer_s[own]),
        "expert_s": np.stack([filled(profile.expert_s[one]) for one in bits]),
        "host_expert_s": np.stack([filled(profile.host_expert_s.get(one, {})) for one in bits]),
        "ready_non_expert_s": filled(ready.non_expert_s),
        "ready_policy_s": filled(ready.policy_s),
        "ready_expert_s": np.stack([filled(ready.expert_s.get(one, {})) for one in bits]),
    }


def _sources(
    config: EngineConfig, facts: ModelFacts, profile: ModelTimings
) -> dict[str, NDArray[Any]]:
    """Records and where they come from, by precision."""
    chunk_bytes = max(_PAGE, config.transfer.chunk_bytes // _PAGE * _PAGE)
    bits = run_bits(config)
    sources = [record_source(config, facts, profile, one) for one in bits]
    sizes = [record_bytes_of(config, facts, one) for one in bits]
    chunks = [source.chunks(size, chunk_bytes) for source, size in zip(sources, sizes, strict=True)]
    in_flight = range(_workers(config) + 1)
    return {
        "record_chunks": np.array(chunks, dtype=np.float64),
        "record_chunk_bytes": np.array([s / c for s, c in zip(sizes, chunks, strict=True)]),
        "chunk_s": np.array([source.chunk_s for source in sources]),
        "rates": np.array([[source.rate(count) for count in in_flight] for source in sources]),
        "queued": np.array([source.sharing == "queued" for source in sources], dtype=np.int64),
    }


def _tiers(
    config: EngineConfig, facts: ModelFacts, profile: ModelTimings
) -> dict[str, NDArray[Any]]:
    """Host tiers that do not hold all records, by precision."""
    bits, tiers = run_bits(config), partial_tiers(config, facts, profile)
    most = max((len(tier.filled) for tier in tiers.values()), default=0)
    filled = np.zeros((len(bits), most), dtype=np.int32)
    for row, one in zip(filled, bits, strict=True):
        held = tiers[one].filled if one in tiers else ()
        row[: len(held)] = [expert.layer * facts.experts + expert.expert for expert in held]
    in_flight = range(_workers(config) + 1)

    def numbers(read: Callable[[PartialTier], float]) -> Doubles:
        return np.array([read(tiers[one]) if one in tiers else 0.0 for one in bits])

    return {
        "tier_records": numbers(lambda tier: len(tier.filled)).astype(np.int64),
        "tier_filled": filled,
        "disk_bytes": numbers(lambda tier: tier.read_bytes),
        "disk_rates": np.array(
            [
                [tiers[one].disk.rate(count) if one in tiers else 0.0 for count in in_flight]
                for one in bits
            ]
        ),
        "disk_s": numbers(lambda tier: tier.read_s),
    }


def _numbers(
    decisions: Decisions, config: EngineConfig, profile: ModelTimings
) -> dict[str, int | float]:
    own = config.precision.bits
    return {
        "most_tokens": decisions.tokens[-1] + 1,
        "workers": _workers(config),
        "slots": decisions.slots,
        "watches_gate": decisions.policy.watches_gate,
        "two_priority": list(QUEUES).index(config.transfer.queue),
        "order": list(ORDERS).index(config.batch.order),
        "has_ready": may_pass_unasked(config.batch.count, decisions.policy, profile),
        "submit_s": profile.submit_s,
        "gate_lookahead_s": profile.gate_lookahead_s,
        "wake_s": profile.wake_s[own],
        "restart_s": profile.restart_s[own],
        "restart_non_expert_s": profile.restart_non_expert_s,
        "host_start_s": profile.host_start_s.get(own, 0.0),
        "contention": profile.contention[own],
        "host_contention": profile.host_contention.get(own, 1.0),
    }


def _workers(config: EngineConfig) -> int:
    return min(config.io.threads, config.transfer.in_flight)


def _times(decisions: Decisions, rows: Doubles) -> list[PassTime]:
    found = []
    for (number, item), row in zip(decisions.passes, rows.tolist(), strict=True):
        there = int(row[2])
        activities = defaultdict(float)
        for place, (name, seconds) in enumerate(zip(_ACTIVITIES, row[3:], strict=True)):
            if there >> place & 1:
                activities[name] = seconds
        found.append(
            PassTime(number, item.group, item.phase, sum(item.tokens), row[0], activities, row[1])
        )
    return found
