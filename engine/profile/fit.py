"""Fits what cannot be timed alone: how transfers and compute slow each other down.

Runs of the engine are recorded and timed; the replay of each must take as long as it took, with the
same fraction of waits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.adjusted_timings import scaled
from engine.facts.timings import ModelTimings, at
from engine.measure.pass_through import Sequenced, run_pass
from engine.measure.recording import TraceRecorder
from engine.replay.simulate import replay
from engine.run.engine import Engine
from engine.run.time_split import ACTIVITIES
from engine.trace.trace import Trace
from engine.types import Bits

_PLAIN = {
    "cache.expert_bytes": "auto",
    "cache.eviction": "lru",
    "cache.scope": "layer",
    "cache.allocation": "uniform",
    "prefetch.predictor": "none",
    "prefetch.depth": 0,
    "precision.scheme": "uniform",
    "placement.name": "device",
    "plan.name": "fixed",
    "batch.count": 1,
    "batch.size": 1,
}
_DEVICE_RUNS: tuple[Mapping[str, Any], ...] = (
    {"cache.eviction": "none"},
    {"cache.expert_bytes": "25%"},
    {"cache.expert_bytes": "50%"},
)
_HOST_RUNS: tuple[Mapping[str, Any], ...] = (
    {"cache.expert_bytes": "25%", "placement.name": "host_split", "placement.host_fraction": 0.5},
    {
        "cache.expert_bytes": "50%",
        "placement.name": "host_split",
        "placement.host_fraction": 0.7,
        "batch.count": 2,
    },
)


def configure_plainly(
    engine: Engine, base: EngineConfig, overlay: Mapping[str, Any]
) -> EngineConfig:
    """Resolve and apply a plain config: as much cache as fits, no prediction, one sequence,
    unless the overlay says otherwise. Raises InfeasibleError."""
    resolved, _ = engine.configure(base.overlay({**_PLAIN, **overlay}))
    return resolved


@dataclass(frozen=True)
class CalibrationRun:
    """A run that the fit must reproduce: its trace and config, its seconds of prefill, of
    decoding and of decoding without waits; the policy's part of it, and the number of records
    moved."""

    config: EngineConfig
    trace: Trace
    warm: int
    prefill_s: float
    decode_s: float
    busy_s: float
    policy_s: float
    moved_records: float

    @property
    def uses_host(self) -> bool:
        """Whether some experts were computed on the host."""
        return self.config.placement.name != "device"


def calibration_runs(
    engine: Engine, sequences: Sequence[Sequenced], base: EngineConfig, bits: Bits
) -> Iterator[CalibrationRun]:
    """Runs that load on demand, and with some of the experts in slots; with host computation if
    there is a host."""
    overlays = _DEVICE_RUNS if engine.device.is_host_memory else (*_DEVICE_RUNS, *_HOST_RUNS)
    for overlay in overlays:
        try:
            config = configure_plainly(engine, base, {"precision.bits": bits, **overlay})
        except InfeasibleError:
            continue
        recorder = TraceRecorder(engine.facts, lean=True)
        engine.record(recorder)
        output_tokens = min(12, max(2, min(len(s.forced) for s in sequences)))
        run_pass(engine, sequences[:1], output_tokens, seed=0)
        warm = recorder.passes
        timed = run_pass(engine, sequences[1:3], output_tokens, seed=0)
        engine.record(None)
        decode_s = sum(t.decode_s for t in timed)
        activities = {name: sum(t.activities[name] for t in timed) for name in ACTIVITIES}
        waits_s = activities["disk_wait"] + activities["transfer_wait"]
        moved_bytes = sum(t.transferred_bytes for t in timed)
        yield CalibrationRun(
            config=config,
            trace=recorder.trace(),
            warm=warm,
            prefill_s=sum(t.ttft_s for t in timed),
            decode_s=decode_s,
            busy_s=decode_s - waits_s,
            policy_s=activities["policy"],
            moved_records=moved_bytes / engine.store.record.size_bytes,
        )


def fit(
    timings: ModelTimings, engine: Engine, runs: Sequence[CalibrationRun], bits: Bits
) -> ModelTimings:
    """Choose the parameters that only show under load so that the replays take as long as the runs.

    For a disk its speed under load, for a link of known speed the cost of waking after an arrival;
    for both, how much longer the first product after a wait takes, and how much slower compute runs
    while chunks move. Then, if the host computes, the cost of handing it a layer's experts while
    the device computes, and how much both slow each other down. The cost of starting a transfer
    comes from the run that starts most. Least squares of log ratios over a grid, refined three
    times.
    """
    on_device = [run for run in runs if not run.uses_host]
    on_host = [run for run in runs if run.uses_host]
    timings = replace(timings, submit_s=_submit_s(timings, engine, on_device))
    queued = timings.sources[bits].sharing == "queued"

    def under_load(values: Sequence[float]) -> ModelTimings:
        first, restart_s, contention = values
        slower = replace(
            timings, restart_s={bits: restart_s}, contention={bits: max(1.0, contention)}
        )
        if queued:
            return replace(slower, wake_s={bits: first})
        source = timings.sources[bits]
        speeds = scaled(source.bytes_per_s, first)
        return replace(slower, sources={bits: replace(source, bytes_per_s=speeds)})

    first = [0.0, 2e-4, 4e-4, 7e-4] if queued else [0.4, 0.6, 0.8, 1.0, 1.3]
    grid = [first, [0.0, 5e-5, 1e-4], [1.0, 1.3, 1.6, 2.2]]
    chosen, error = _search(grid, lambda v: _error(under_load(v), engine, on_device))
    found = under_load(chosen)
    notes: dict[str, Any] = {
        "fit_rms_log_ratio": _rms(error, on_device),
        "wake_s" if queued else "source_speed_under_load": chosen[0],
        "calibration_runs": len(on_device),
    }
    if on_host:

        def beside_host(values: Sequence[float]) -> ModelTimings:
            start_s, contention = values
            return replace(
                found,
                host_start_s={bits: start_s},
                host_contention={bits: max(1.0, contention)},
            )

        alone_s = timings.host_start_s[bits]
        grid = [[alone_s + more for more in (0.0, 2e-4, 4e-4, 8e-4)], [1.0, 1.3, 1.7]]
        chosen, error = _search(grid, lambda v: _error(beside_host(v), engine, on_host))
        found = beside_host(chosen)
        notes["fit_rms_log_ratio_with_host"] = _rms(error, on_host)
        notes["calibration_runs_with_host"] = len(on_host)
    return replace(found, notes=notes)


def _search(
    grid: Sequence[Sequence[float]], error_of: Callable[[tuple[float, ...]], float]
) -> tuple[tuple[float, ...], float]:
    """The point with the smallest error, and that error."""
    known: dict[tuple[float, ...], float] = {}
    for spread in (0.0, 0.12, 0.06, 0.03):
        if spread:
            best = min(known, key=known.__getitem__)
            grid = [[value * (1 - spread), value, value * (1 + spread)] for value in best]
        for point in itertools.product(*grid):
            if point not in known:
                known[point] = error_of(point)
    best = min(known, key=known.__getitem__)
    return best, known[best]


def _submit_s(timings: ModelTimings, engine: Engine, runs: Sequence[CalibrationRun]) -> float:
    most = max(runs, key=lambda run: run.moved_records)
    passes = sum(item.phase == "decode" for item in most.trace.passes[most.warm :])
    plain_s = passes * engine.facts.moe_layers * at(timings.policy_s, 1)
    return max(0.0, most.policy_s - plain_s) / max(1.0, most.moved_records)


def _rms(error: float, runs: Sequence[CalibrationRun]) -> float:
    return math.sqrt(error / (3 * len(runs)))


def _error(timings: ModelTimings, engine: Engine, runs: Sequence[CalibrationRun]) -> float:
    total = 0.0
    for run in runs:
        found = replay(run.config, engine.facts, run.trace, timings, warm=range(run.warm))
        timed = [t for t in found.times if t.number >= run.warm]
        decode = [t for t in timed if t.phase == "decode"]
        decode_s = sum(t.seconds for t in decode)
        busy_s = decode_s - sum(t.activities["wait"] for t in decode)
        prefill_s = sum(t.seconds for t in timed if t.phase == "prefill")
        total += math.log(decode_s / run.decode_s) ** 2
        total += math.log(busy_s / run.busy_s) ** 2
        total += math.log(prefill_s / run.prefill_s) ** 2
    return total
