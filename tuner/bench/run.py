"""Measures configs, policies, settings and baseline engines side by side, in interleaved rounds.

In: rows to measure, a workload. Out: a RowResult each, with every metric pooled over the rounds and
its ratio to the first row, round by round. A row that fails reports why and does not affect others;
an interrupt ends the bench, and what was measured until then is its result.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.contract.report import Metric, Report
from engine.contract.requests import Workload
from engine.contract.statistics import mean_metric
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError
from tuner.statistics import paired_ratio

DIVERGENCE_TOKENS = 96
RATIO_METRICS = ("output_tps", "decode_tps", "tpot_ms", "ttft_ms")


@dataclass(frozen=True)
class BenchRow:
    """A config to measure on an engine. own_process: a baseline engine, alive only during its
    turns.

    policy: the preset of the row; without: the mechanism that it lacks; settings: what `--set` laid
    over it (path -> value).
    """

    name: str
    config: EngineConfig
    session: EngineSession
    own_process: bool = False
    policy: str | None = None
    without: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RowResult:
    """The measurements of a row. values: by metric, one per round; sentinels likewise.

    asked: the config before the engine resolved it; model: the model it ran (None: a baseline
    engine); policy, without, settings: see BenchRow.
    """

    name: str
    config: dict[str, Any]
    asked: EngineConfig = field(default_factory=EngineConfig)
    model: str | None = None
    policy: str | None = None
    without: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    units: dict[str, str] = field(default_factory=dict)
    sentinels: list[tuple[float, float]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    failure: str | None = None
    smallest_bytes: int | None = None

    def metrics(self) -> dict[str, Metric]:
        """Means with intervals over the rounds."""
        return {name: mean_metric(found, self.units[name]) for name, found in self.values.items()}

    def ratios(self, first: RowResult) -> dict[str, Metric]:
        """The ratios of this row to the first one, paired by round."""
        found = {}
        for name in RATIO_METRICS:
            ratio = paired_ratio(self.values.get(name, ()), first.values.get(name, ()))
            if ratio is not None:
                found[name] = ratio
        return found

    def to_json(self, first: RowResult) -> dict[str, Any]:
        """One row of `tune bench --json`."""
        count = max(1, len(self.sentinels))
        return {
            "name": self.name,
            "policy": self.policy,
            "without": self.without,
            "settings": dict(self.settings),
            "config": self.config,
            "metrics": {name: asdict(metric) for name, metric in self.metrics().items()},
            "ratio_to_first": {name: asdict(m) for name, m in self.ratios(first).items()},
            "memory": self.memory,
            "sentinel": {
                "compute_ms": sum(s[0] for s in self.sentinels) / count,
                "read_ms": sum(s[1] for s in self.sentinels) / count,
            },
            "environment": self.environment,
            "error": self.error,
        }


@dataclass(frozen=True)
class BenchOutcome:
    """What was measured. interrupted: before it was all."""

    results: list[RowResult]
    interrupted: bool = False


def run_bench(
    rows: Sequence[BenchRow],
    workload: Workload,
    rounds: int,
    seed: int,
    notify: Callable[[str], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> BenchOutcome:
    """Measures every row once a round: A B C, A B C, ...; then divergences, where they differ.

    interrupted: whether a stop was requested, checked before each row. Then, and on
    KeyboardInterrupt, it returns at once what it has. Engines end in every case.
    """
    results = [_unmeasured(row) for row in rows]
    with contextlib.ExitStack() as undo:
        for row in rows:
            undo.callback(row.session.kill)
        try:
            for number in range(rounds):
                for row, result in zip(rows, results, strict=True):
                    if interrupted():
                        raise KeyboardInterrupt
                    if result.error is None:
                        notify(f"round {number + 1}/{rounds}: {row.name}")
                        _take_turn(row, result, workload, seed + number)
            add_divergence(rows, results, workload, notify)
            for row in rows:
                row.session.close()
        except KeyboardInterrupt:
            for result in results:
                if result.error is None and not result.sentinels:
                    result.error = "the bench was interrupted before it"
            return BenchOutcome(results, interrupted=True)
    return BenchOutcome(results)


def _take_turn(row: BenchRow, result: RowResult, workload: Workload, seed: int) -> None:
    """Measures a row once; a failure is kept in its result."""
    try:
        _measure(row, result, workload, seed)
    except WorkerError as error:
        result.error, result.failure = str(error), error.failure
        result.smallest_bytes = error.smallest_bytes
    if row.own_process:
        row.session.close()


def add_divergence(
    rows: Sequence[BenchRow],
    results: Sequence[RowResult],
    workload: Workload,
    notify: Callable[[str], None],
) -> None:
    """Adds the decode-mode divergence from the 16-bit model, as `kld_mean` and `top1_agreement`, to
    every row that is not exact, if some row's precision depends on misses or its KV cache is lossy.

    Rows that must compute the same share one measurement.
    """
    on_miss = any(result.environment.get("lossy") for result in results)
    if not on_miss and not any(_loses_keys_and_values(row.config) for row in rows):
        return
    text = "\n\n".join(workload.prompts[:4])
    known: dict[str, dict[str, float]] = {}
    for row, result in zip(rows, results, strict=True):
        if row.own_process or result.error is not None or _is_exact(row.config):
            continue
        key = json.dumps([row.session.model, lossy_settings(row.config)], sort_keys=True)
        try:
            if key not in known:
                notify(f"divergence: {row.name}")
                known[key] = _divergence(row, text, known)
        except WorkerError as error:
            notify(f"{row.name}: no divergence: {error}")
            continue
        for name, unit in (("kld_mean", "nats"), ("top1_agreement", "fraction")):
            result.values[name] = [known[key][name]]
            result.units[name] = unit


def _is_exact(config: EngineConfig) -> bool:
    bits = (config.precision.bits, config.precision.non_expert_bits)
    return bits == (16, 16) and not _loses_keys_and_values(config)


def _loses_keys_and_values(config: EngineConfig) -> bool:
    return config.kv.bits != 16 or config.kv.keep_fraction != 1


def _divergence(row: BenchRow, text: str, known: dict[str, dict[str, float]]) -> dict[str, float]:
    """Measures the divergence of one row; keeps the reference first, once per model."""
    capacity = {"kv.max_tokens": max(row.config.kv.max_tokens, DIVERGENCE_TOKENS + 8)}
    model = f"reference of {row.session.model}"
    if model not in known:
        few = {"device.name": row.config.device.name, "cache.expert_bytes": "15%"}
        row.session.configure(EngineConfig().overlay({**few, **capacity}))
        known[model] = row.session.request(
            "divergence", text=text, tokens=DIVERGENCE_TOKENS, reference=True
        )
    row.session.configure(row.config.overlay(capacity))
    return row.session.request("divergence", text=text, tokens=DIVERGENCE_TOKENS, reference=False)


def grid_rows(settings: Mapping[str, Sequence[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Every combination of the settings, named by the settings that vary."""
    several = [path for path, values in settings.items() if len(values) > 1]
    found = []
    for values in itertools.product(*settings.values()):
        point = dict(zip(settings, values, strict=True))
        found.append((" ".join(f"{path}={point[path]}" for path in several), point))
    return found


def _unmeasured(row: BenchRow) -> RowResult:
    return RowResult(
        row.name,
        row.config.to_dict(),
        asked=row.config,
        model=None if row.own_process else row.session.model,
        policy=row.policy,
        without=row.without,
        settings=row.settings,
    )


def _measure(row: BenchRow, result: RowResult, workload: Workload, seed: int) -> None:
    if row.own_process:  # a baseline engine's memory is not described by our equation
        row.session.request("configure", config=row.config.to_dict())
    else:
        configured = row.session.configure(row.config)
        result.config = configured.config.to_dict()
        result.memory.update(configured.memory.to_json())
    report = row.session.measure(workload, repeats=1, warm_up=True, seed=seed)
    _add(result, report)


def _add(result: RowResult, report: Report) -> None:
    for sample in report.samples:
        result.values[sample.metric].append(sample.value)
        result.units[sample.metric] = sample.unit
    result.sentinels.append((report.sentinel.compute_ms, report.sentinel.read_ms))
    result.environment = report.environment
    result.memory["external_peak_bytes"] = max(
        report.memory.external_peak_bytes, result.memory.get("external_peak_bytes", 0)
    )
