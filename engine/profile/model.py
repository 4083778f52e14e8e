"""Measures the parts of this model's forward passes on this machine: ModelTimings.

Parts that can be timed alone are timed (experts by tokens, reads by chunks in flight); the rest
comes from the engine's own clock over real passes. What cannot be separated (how much the disk
slows down while compute runs, and the other way round) is fitted: the replay of the calibration
runs must take as long as the runs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from engine.config.settings import EngineConfig
from engine.device.emulated import EmulatedDevice
from engine.facts.adjusted_timings import scaled
from engine.facts.timings import (
    Curve,
    ModelTimings,
    ReadyTimings,
    RecordSource,
    RoundedTimings,
    at,
)
from engine.measure.bandwidth import link_bandwidth, record_bandwidth
from engine.measure.pass_through import Sequenced
from engine.measure.recording import TraceRecorder
from engine.profile.experts import time_experts, with_host, with_rounded
from engine.profile.fit import calibration_runs, configure_plainly, fit
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.time_split import Activity
from engine.types import Bits, Phase

DECODE_SIZES = (1, 2, 4)
PREFILL_TOKENS = (16, 64, 128)
DECODE_PASSES = 12
T = TypeVar("T")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _PassClock:
    """One timed pass: seconds by activity, tokens of each expert by layer."""

    tokens: int
    seconds: dict[Activity, float]
    counts: list[list[int]]


def calibrate(
    engine: Engine,
    sequences: Sequence[Sequenced],
    base: EngineConfig,
    bits: Sequence[Bits],
    progress: Progress | None = None,
) -> ModelTimings:
    """Measure the timings.

    sequences: real text of at least a few prompts with continuations; base: budget and io settings
    of the runs to be predicted; bits: precisions to time. Takes about a minute per precision.
    Raises InfeasibleError if none of them fits.
    """
    steps = 3 * len(bits) + 1
    done = itertools.count(1)

    def report() -> None:
        if progress is not None:
            progress("calibrate", next(done), steps)

    parts = []
    for one in bits:
        configure_plainly(engine, base, {"precision.bits": one})
        curve = time_experts(engine)
        own = _from_passes(engine, sequences, curve, one)
        report()
        source, disk = _time_sources(engine, base, one)
        own = replace(own, sources={one: source}, disk_sources={} if disk is None else {one: disk})
        own = with_host(own, engine, base, one)
        own = with_rounded(own, engine, base, one)
        report()
        runs = list(calibration_runs(engine, sequences, base, one))
        parts.append(fit(own, engine, runs, one))
        report()
    whole = _joined(parts)
    gate_lookahead_s = _time_gate_lookahead(
        engine, sequences, base, bits[-1], at(whole.policy_s, 1)
    )
    report()
    return replace(whole, gate_lookahead_s=gate_lookahead_s)


def _joined(parts: Sequence[ModelTimings]) -> ModelTimings:
    """Join the timings of each precision. Values that do not depend on bits are taken from the
    last: the fewest bits disturb the rest least."""
    last = parts[-1]
    ready = last.ready and replace(
        last.ready,
        expert_s=_merged(part.ready.expert_s for part in parts if part.ready is not None),
    )
    return replace(
        last,
        ready=ready,
        rounded=_joined_rounded([part.rounded for part in parts if part.rounded is not None]),
        sources=_merged(part.sources for part in parts),
        disk_sources=_merged(part.disk_sources for part in parts),
        layer_s=_merged(part.layer_s for part in parts),
        expert_s=_merged(part.expert_s for part in parts),
        host_expert_s=_merged(part.host_expert_s for part in parts),
        wake_s=_merged(part.wake_s for part in parts),
        restart_s=_merged(part.restart_s for part in parts),
        contention=_merged(part.contention for part in parts),
        host_start_s=_merged(part.host_start_s for part in parts),
        host_contention=_merged(part.host_contention for part in parts),
        notes={str(bits): dict(part.notes) for part in parts for bits in part.expert_s},
    )


def _joined_rounded(parts: Sequence[RoundedTimings]) -> RoundedTimings | None:
    if not parts:
        return None
    return RoundedTimings(
        _merged(part.expert_s for part in parts),
        ready_expert_s=_merged(part.ready_expert_s for part in parts),
    )


def _merged(maps: Iterable[Mapping[int, T]]) -> dict[int, T]:
    return {bits: value for one in maps for bits, value in one.items()}


def _prefill_passes(engine: Engine, sequences: Sequence[Sequenced]) -> Iterator[_PassClock]:
    """Prefill chunks of several sizes, timed by the engine's clock."""
    text = [token for s in sequences for token in (*s.prompt, *s.forced)]
    for tokens in PREFILL_TOKENS:
        for number in range(4):
            start = number * tokens % max(1, len(text) - tokens)
            batch = MicroBatch(torch.tensor([text[start : start + tokens]]))
            clocked = _clocked(engine, [batch], "prefill")
            if number:  # the first one warms caches and kernels
                yield clocked


def _decode_passes(engine: Engine, sequences: Sequence[Sequenced]) -> Iterator[_PassClock]:
    """Decode passes of several sizes, timed by the engine's clock."""
    text = [token for s in sequences for token in (*s.prompt, *s.forced)]
    for size in DECODE_SIZES:
        rows = [text[start::7][: DECODE_PASSES + 9] for start in range(size)]
        batch = MicroBatch(torch.tensor([row[:8] for row in rows]))
        engine.prefill([batch])
        for number in range(min(DECODE_PASSES, min(map(len, rows)) - 9)):
            batch.tokens = torch.tensor([[row[8 + number]] for row in rows])
            clocked = _clocked(engine, [batch], "decode")
            if number > 1:
                yield clocked


def _clocked(engine: Engine, batches: list[MicroBatch], phase: Phase) -> _PassClock:
    recorder = TraceRecorder(engine.facts, lean=True)
    engine.record(recorder)
    engine.device.synchronize()
    engine.clock.reset()
    engine.forward(batches, phase)
    engine.device.synchronize()
    engine.clock.switch("other")
    seconds = dict(engine.clock.seconds)
    engine.record(None)
    trace = recorder.trace()
    counts = [
        [int(n) for n in torch.bincount(torch.from_numpy(trace.experts[:, layer].ravel()).long())]
        for layer in range(trace.layers)
    ]
    return _PassClock(trace.experts.shape[0], seconds, counts)


def _from_passes(
    engine: Engine, sequences: Sequence[Sequenced], expert_s: dict[int, float], bits: Bits
) -> ModelTimings:
    """What the engine's clock says of each part. Layers that ask the policy and layers that need
    not are timed apart."""
    layers, runtime = engine.facts.moe_layers, engine.live.runtime
    prefill = list(_prefill_passes(engine, sequences))  # first: the cache is warm after it
    passed = decode = list(_decode_passes(engine, sequences))
    is_passed = runtime.ready(1) is not None
    if is_passed:
        runtime.always_asks = True
        decode = list(_decode_passes(engine, sequences))
        runtime.always_asks = False
    asked = [*prefill, *decode]

    def curve(passes: Sequence[_PassClock], name: Activity, parts: int = layers) -> Curve:
        sizes = sorted({item.tokens for item in passes})
        return {
            n: statistics.median(p.seconds[name] for p in passes if p.tokens == n) / parts
            for n in sizes
        }

    def products_s(item: _PassClock) -> float:
        return sum(at(expert_s, n) for layer in item.counts for n in layer if n)

    gathering = {
        n: statistics.median(
            (p.seconds["compute"] - products_s(p)) / layers for p in asked if p.tokens == n
        )
        for n in sorted({item.tokens for item in asked})
    }
    ready = None
    if is_passed:
        faster = statistics.median(p.seconds["compute"] / products_s(p) for p in passed)
        ready = ReadyTimings(
            curve(passed, "non_expert"), curve(passed, "policy"), {bits: scaled(expert_s, faster)}
        )
    return ModelTimings(
        model=engine.facts.fingerprint,
        device=engine.device.name,
        sources={},
        non_expert_s=curve(asked, "non_expert"),
        router_s=curve(asked, "router"),
        layer_s={bits: gathering},
        expert_s={bits: expert_s},
        pass_s=curve(asked, "other", parts=1),
        policy_s=curve(asked, "policy"),
        submit_s=0.0,
        gate_lookahead_s=0.0,
        wake_s={bits: 0.0},
        restart_s={bits: 0.0},
        contention={bits: 1.0},
        together=engine.passes.together,
        ready=ready,
    )


def _time_gate_lookahead(
    engine: Engine,
    sequences: Sequence[Sequenced],
    base: EngineConfig,
    bits: Bits,
    policy_s: float,
) -> float:
    """Seconds of the gate look-ahead to the next router at one gate, at one token."""
    if "next_gate" not in engine.facts.predictors:
        return 0.0
    overlay = {"precision.bits": bits, "prefetch.predictor": "next_gate", "prefetch.depth": 1}
    configure_plainly(engine, base, overlay)
    batch = MicroBatch(torch.tensor([sequences[0].prompt[:8]]))
    engine.prefill([batch])
    seconds = []
    for token in (*sequences[0].prompt[8:], *sequences[0].forced)[:DECODE_PASSES]:
        batch.tokens = torch.tensor([[token]])
        seconds.append(_clocked(engine, [batch], "decode").seconds["policy"])
    spent = statistics.median(seconds[1:]) / engine.facts.moe_layers
    return max(0.0, spent - policy_s)


def _time_sources(
    engine: Engine, base: EngineConfig, bits: Bits
) -> tuple[RecordSource, RecordSource | None]:
    """The record source: the link from the host tier (an emulated machine's as it is slowed), and
    the disk, from which what the tier does not hold comes; without a tier the disk and None."""
    config = configure_plainly(engine, base, {"precision.bits": bits})
    extents = len(engine.store.chunks(engine.store.experts[-1], 1 << 62))
    chunk = config.transfer.chunk_bytes
    depths = sorted({1, 2, min(config.io.threads, config.transfer.in_flight)})
    speeds = {
        depth: statistics.median(record_bandwidth(engine.store, depth, chunk) for _ in range(3))
        for depth in depths
    }
    disk = RecordSource(speeds, 0.0, "shared", extents)
    tier, threads = engine.live.tiers.get(bits), config.io.threads
    if tier is None:
        return disk, None
    if isinstance(engine.device, EmulatedDevice):
        machine = engine.device.machine
        rate = {1: machine.slowed_link_bytes_per_s}
        return RecordSource(rate, machine.slowed_link_latency_s, "queued", extents), disk
    link = statistics.median(link_bandwidth(engine.device, tier, threads) for _ in range(3))
    return RecordSource({1: link}, 0.0, "queued", extents), disk
