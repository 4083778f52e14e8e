"""Measure a configured engine on a workload: warm up, repeat, report.

Every metric has its unit and interval; the parts of a token's time sum to its wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.config.exactness import ON_MISS
from engine.contract.report import MemoryReading, Metric, Report, Sample, Sentinel
from engine.contract.statistics import mean_metric
from engine.device import process_memory
from engine.errors import EngineError
from engine.measure.bandwidth import link_bandwidth, record_bandwidth
from engine.measure.efficiency import memory_bytes_per_s, touched_bytes
from engine.measure.energy import EnergyMeter
from engine.measure.expert_use import expert_use
from engine.measure.other_load import others_cpu_fraction, read_load
from engine.measure.pass_through import GroupTiming, Sequenced, run_pass
from engine.measure.recording import TraceRecorder
from engine.measure.sentinel import measure_sentinel
from engine.measure.statistics import percentile_metric
from engine.measure.workload import pick
from engine.policy.expert_policy import PolicyCounters
from engine.replay.bound import best_hits
from engine.run.engine import Engine
from engine.run.time_split import ACTIVITIES
from engine.trace.trace import Trace

MAX_WARM_UPS = 4
_FLAT = 0.05
Progress = Callable[[str, int, int], None]
Values = dict[str, tuple[float, str]]
"""Value and unit by metric name."""


def measure(
    engine: Engine,
    sequences: list[Sequenced],
    *,
    output_tokens: int,
    sequences_per_repeat: int,
    repeats: int,
    first_repeat: int,
    warm_up: bool,
    runtime_bytes: int,
    meter: EnergyMeter | None = None,
    progress: Progress | None = None,
    on_trace: Callable[[Trace], None] | None = None,
) -> Report:
    """Run `repeats` repeats, numbered from first_repeat (the number decides texts and seed).

    warm_up: first run passes until speed and hit rate are flat. runtime_bytes: the process's
    baseline; meter: counts energy, if available; on_trace: called with the routing trace, warm-ups
    included. Sequences whose logits become NaN count in error_rate, and in the hit rates, but in
    nothing else. Raises EngineError if there are no sequences or all of them fail.
    """
    assert engine.config is not None
    if output_tokens < 2:
        raise EngineError("output_tokens must be at least 2 to time decoding")
    recorder = TraceRecorder(engine.facts, lean=True)
    engine.record(recorder)
    warm_ups = _warm_up(engine, sequences, output_tokens, sequences_per_repeat) if warm_up else 0
    if progress is not None and warm_up:
        progress("measure", 0, repeats)
    bandwidth = _bandwidth(engine)
    memory_rate = memory_bytes_per_s(engine)
    sentinels: list[Sentinel] = []
    rows: list[Values] = []
    timings: list[GroupTiming] = []
    counted: list[PolicyCounters] = []
    first_pass = recorder.passes
    load = read_load()
    for repeat in range(first_repeat, first_repeat + repeats):
        sentinels.append(measure_sentinel(engine.store.files[0]))
        texts = pick(sequences, sequences_per_repeat, repeat)
        row, done = _one_repeat(engine, texts, output_tokens, repeat, recorder, meter, bandwidth)
        if memory_rate is not None and done:
            row["bandwidth_efficiency"] = _efficiency(engine, done, memory_rate), "fraction"
        rows.append(row)
        timings.extend(done)
        counted.append(engine.residency.counters)
        if progress is not None:
            progress("measure", repeat - first_repeat + 1, repeats)
    others = others_cpu_fraction(load, read_load())
    engine.record(None)
    if on_trace is not None:
        on_trace(recorder.trace())
    if not timings:
        raise EngineError(
            f"every sequence failed: with compute.dtype {engine.config.compute.dtype} and "
            f"precision.bits {engine.config.precision.bits} the logits are NaN; try compute.dtype "
            "bfloat16 or float32, or more bits"
        )
    metrics = _summary(rows, timings)
    samples = tuple(
        Sample(name, first_repeat + number, value, unit)
        for number, row in enumerate(rows)
        for name, (value, unit) in row.items()
    )
    sentinel = Sentinel(
        compute_ms=min(s.compute_ms for s in sentinels),
        read_ms=sorted(s.read_ms for s in sentinels)[len(sentinels) // 2],
    )
    environment = {
        "warm_up_passes": warm_ups,
        "others_cpu_fraction": others,
        "energy_source": meter.source if meter else None,
        "forced_text": all(sequence.forced for sequence in sequences),
        **_environment(engine),
    }
    return Report(
        metrics,
        samples,
        memory_reading(engine, runtime_bytes),
        sentinel,
        environment,
        expert_use(engine.facts, recorder.trace(), first_pass, counted),
    )


def _one_repeat(
    engine: Engine,
    texts: Sequence[Sequenced],
    output_tokens: int,
    seed: int,
    recorder: TraceRecorder,
    meter: EnergyMeter | None,
    bandwidth: float,
) -> tuple[Values, list[GroupTiming]]:
    """Run the texts once. Returns the values of the repeat and the groups that did not fail."""
    if engine.needs_future:
        foresee(engine, texts, output_tokens, seed)
        engine.record(recorder)
    engine.residency.reset_counters()
    first_pass = recorder.passes
    energy_j = meter.joules() if meter else 0.0
    own = run_pass(engine, texts, output_tokens, seed=seed)
    energy_j = meter.joules() - energy_j if meter else 0.0
    done = [timing for timing in own if not timing.failed]
    row = _error_rate(own)
    if done or not own:
        row |= _repeat_values(engine, done, output_tokens, bandwidth)
    if len(done) == len(own):
        decoded = len(texts) * (output_tokens - 1)
        prompt_tokens = sum(timing.prompt_tokens for timing in own)
        row |= _bound_values(engine, recorder, first_pass, decoded, prompt_tokens, row)
        if energy_j > 0:  # a counter that does not move counts nothing
            row["energy_j_per_token"] = (energy_j / (len(texts) * output_tokens), "J")
    return row, done


def _environment(engine: Engine) -> dict[str, Any]:
    """The conditions under which the metrics were measured."""
    return {
        "record_bytes": engine.store.record.size_bytes,
        "in_place": engine.store.in_place,
        "o_direct": engine.store.direct,
        "code_layout": engine.store.record.code_layout,
        "inactive": list(engine.live.inactive),
        "notes": list(engine.live.notes),
        "lossy": engine.live.config.precision.scheme in ON_MISS,
        "plan": engine.planned.reason if engine.planned else None,
    }


def memory_reading(engine: Engine, runtime_bytes: int) -> MemoryReading:
    """The engine's own accounting together with an outside reading."""
    assert engine.memory is not None
    plan = engine.memory
    external = engine.device.peak_bytes()
    on_cpu = engine.device.torch_device.type == "cpu"
    host_tier = engine.live.host_tier_bytes if on_cpu else 0
    return MemoryReading(
        arena_bytes=plan.slots_bytes,
        non_expert_bytes=plan.non_expert_bytes,
        kv_bytes=plan.kv_bytes,
        peak_bytes=plan.total_bytes,
        external_peak_bytes=max(0, external - runtime_bytes - host_tier) if on_cpu else external,
        external_source=engine.device.peak_source(),
        runtime_bytes=runtime_bytes,
        host_peak_bytes=process_memory.peak_resident_bytes(),
    )


def _bandwidth(engine: Engine) -> float:
    """Bytes per second of this configuration's record source."""
    live = engine.live
    transfer = live.config.transfer
    threads = min(live.config.io.threads, transfer.in_flight)
    if live.host_holds_all:
        tier = live.tiers[live.config.precision.bits]
        return link_bandwidth(engine.device, tier, threads)
    return record_bandwidth(engine.store, threads, transfer.chunk_bytes)


def foresee(engine: Engine, texts: Sequence[Sequenced], output_tokens: int, seed: int) -> None:
    """Run the texts untimed and give the policy their future demands: exact policies do not
    change routing, and sampling is seeded."""
    recorder = TraceRecorder(engine.facts, lean=True)
    engine.record(recorder)
    run_pass(engine, texts, output_tokens, seed=seed)
    engine.record(None)
    engine.live.policy.future.load(recorder.trace())


def _bound_values(
    engine: Engine,
    recorder: TraceRecorder,
    first_pass: int,
    decoded: int,
    prompt_tokens: int,
    row: Values,
) -> Values:
    """The best possible hit rate with these slots and this scope, and the bytes it would still
    move."""
    live = engine.live
    if len(live.stores) > 1:
        return {}  # mixed sizes: the bound does not hold
    pools = live.policy.cache.slots_by_pool
    bound = best_hits(recorder.trace(), pools, range(first_pass, recorder.passes))
    best = bound.hit_rate("decode")
    values: Values = {"oracle_hit_rate": (best, "fraction")}
    missed = bound.lookups["decode"] - bound.hits["decode"]
    least = missed * live.store.record.size_bytes / decoded
    values["oracle_bytes_per_token"] = (least, "bytes")
    missed = bound.lookups["prefill"] - bound.hits["prefill"]
    least_prefill = missed * live.store.record.size_bytes / prompt_tokens
    values["oracle_hit_rate.prefill"] = (bound.hit_rate("prefill"), "fraction")
    values["oracle_prefill_bytes_per_token"] = (least_prefill, "bytes")
    moved, _ = row["transfer_bytes_per_token"]
    if moved:
        values["policy_ratio"] = (least / moved, "fraction")
    return values


def _warm_up(
    engine: Engine, sequences: list[Sequenced], output_tokens: int, per_repeat: int
) -> int:
    """Run passes over texts other than the first repeats', until two in a row agree."""
    assert engine.config is not None
    group = engine.config.batch.count * engine.config.batch.size
    former: tuple[float, float] | None = None
    for number in range(MAX_WARM_UPS):
        texts = pick(sequences[::-1], min(per_repeat, group), number)
        engine.residency.reset_counters()
        started = time.perf_counter()
        run_pass(engine, texts, output_tokens, seed=-1 - number)
        now = (time.perf_counter() - started, _hit_rate(engine, "decode"))
        if former is not None:
            slower = abs(now[0] / former[0] - 1)
            if slower < _FLAT and abs(now[1] - former[1]) < _FLAT:
                return number + 1
        former = now
    return MAX_WARM_UPS


def _error_rate(timings: Sequence[GroupTiming]) -> Values:
    failed = sum(timing.sequences for timing in timings if timing.failed)
    return {"error_rate": (failed / max(1, sum(t.sequences for t in timings)), "fraction")}


def _repeat_values(
    engine: Engine, timings: Sequence[GroupTiming], output_tokens: int, bandwidth: float
) -> Values:
    sequences = sum(timing.sequences for timing in timings)
    generated = sequences * output_tokens
    decoded = sequences * (output_tokens - 1)
    prefill_s = sum(timing.ttft_s for timing in timings)
    decode_s = sum(timing.decode_s for timing in timings)
    if generated == 0 or decode_s <= 0:
        raise EngineError("the run generated no tokens: give the workload more sequences")
    moved = sum(timing.transferred_bytes for timing in timings)
    from_disk = sum(timing.disk_bytes for timing in timings)
    carried = moved if engine.live.host_holds_all else from_disk
    parts = {
        name: sum(timing.activities[name] for timing in timings) * 1e3 / decoded
        for name in ACTIVITIES
    }
    values: Values = {
        "output_tps": (generated / (prefill_s + decode_s), "tokens/s"),
        "decode_tps": (decoded / decode_s, "tokens/s"),
        "prefill_tps": (sum(t.prompt_tokens for t in timings) / prefill_s, "tokens/s"),
        "ttft_ms": (prefill_s / len(timings) * 1e3, "ms"),
        "tpot_ms": (decode_s / len(timings) / (output_tokens - 1) * 1e3, "ms"),
        "e2e_ms": ((prefill_s + decode_s) / len(timings) * 1e3, "ms"),
        "expert_hit_rate": (_hit_rate(engine, "decode"), "fraction"),
        "expert_hit_rate.prefill": (_hit_rate(engine, "prefill"), "fraction"),
        "disk_bytes_per_token": (from_disk / decoded, "bytes"),
        "transfer_bytes_per_token": (moved / decoded, "bytes"),
        "stall_ms_per_token": (parts["transfer_wait"] + parts["disk_wait"], "ms"),
        "wall_ms_per_token": (decode_s * 1e3 / decoded, "ms"),
        "overlap_ratio": (
            max(_busy_seconds(timings), carried / bandwidth) / decode_s,
            "fraction",
        ),
        "read_bytes_per_s": (bandwidth, "bytes/s"),
        "resident_fraction": (_resident_fraction(engine), "fraction"),
        # without latency limits every finished request counts
        "request_rps": (sequences / (prefill_s + decode_s), "requests/s"),
    }
    values.update({f"time_ms_per_token.{name}": (ms, "ms") for name, ms in parts.items()})
    values.update(_prefill_values(timings, prefill_s))
    values.update(_prefetch_values(engine))
    return values


def _efficiency(engine: Engine, done: Sequence[GroupTiming], memory_rate: float) -> float:
    steps = sum(len(timing.gaps_s) for timing in done)
    return touched_bytes(engine, steps) / sum(t.decode_s for t in done) / memory_rate


def _prefill_values(timings: Sequence[GroupTiming], prefill_s: float) -> Values:
    """The time split of the prefill, per prompt token."""
    tokens = sum(timing.prompt_tokens for timing in timings)
    moved = sum(timing.prefill_transferred_bytes for timing in timings)
    values = {
        f"prefill_ms_per_token.{name}": (
            sum(timing.prefill_activities[name] for timing in timings) * 1e3 / tokens,
            "ms",
        )
        for name in ACTIVITIES
    }
    values["prefill_wall_ms_per_token"] = (prefill_s * 1e3 / tokens, "ms")
    values["prefill_transfer_bytes_per_token"] = (moved / tokens, "bytes")
    return values


def _busy_seconds(timings: Sequence[GroupTiming]) -> float:
    waits = ("transfer_wait", "disk_wait")
    return sum(
        seconds
        for timing in timings
        for name, seconds in timing.activities.items()
        if name not in waits
    )


def _prefetch_values(engine: Engine) -> Values:
    counters = engine.residency.counters
    if counters.predicted == 0:
        return {}
    values = {
        "prefetch_precision": (counters.predicted_demanded / counters.predicted, "fraction"),
        "prefetch_recall": (
            counters.predicted_demanded / max(1, counters.predicted_layer_demand),
            "fraction",
        ),
    }
    arrivals = engine.residency.arrivals
    if arrivals.demanded:
        in_time = arrivals.in_time / arrivals.demanded
        values["prefetch_in_time"] = (in_time, "fraction")
    return values


def _hit_rate(engine: Engine, phase: Any) -> float:
    counters = engine.residency.counters
    lookups = counters.hits[phase] + counters.misses[phase]
    return counters.hits[phase] / lookups if lookups else 0.0


def _resident_fraction(engine: Engine) -> float:
    assert engine.memory is not None
    return engine.memory.resident_fraction(len(engine.store.experts))


def _summary(rows: Sequence[Values], timings: Sequence[GroupTiming]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    gaps_ms = [gap * 1e3 for timing in timings for gap in timing.gaps_s]
    for name in dict.fromkeys(name for row in rows for name in row):
        own = [row[name] for row in rows if name in row]
        metrics[name] = mean_metric([value for value, _ in own], own[0][1])
    ttfts = [timing.ttft_s * 1e3 for timing in timings]
    for percent in (50, 90, 95, 99):
        metrics[f"itl_ms.p{percent}"] = percentile_metric(gaps_ms, percent, "ms")
        metrics[f"ttft_ms.p{percent}"] = percentile_metric(ttfts, percent, "ms")
    return metrics
