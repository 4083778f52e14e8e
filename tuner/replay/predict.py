"""Replays configs over a recorded trace, for `tune replay` and for studies.

In: a trace, timings, configs. Out: predicted metrics of each, and Belady's bound at its slots.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.derived.file import CONTENT_ERRORS
from engine.errors import EngineError
from engine.facts.emulated_machine import PREFIX, load_machine, predicted_timings
from engine.facts.machine import probe
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, load_timings, read_timings, timings_path
from engine.precision.allocate import with_table
from engine.precision.table import run_bits
from engine.replay.bound import best_hits
from engine.replay.decisions import Decisions
from engine.replay.simulate import replay
from engine.trace.trace import Trace
from tuner.errors import StudyError, UsageError
from tuner.folders import cache_folder


@dataclass
class ReplayRow:
    """A config's prediction. seconds: duration of the replay itself."""

    name: str
    config: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict; all metrics are predictions."""
        return {
            "name": self.name,
            "config": self.config,
            "predicted": self.metrics,
            "replay_s": self.seconds,
            "error": self.error,
        }


def facts_of(trace: Trace) -> ModelFacts:
    """The facts of the model that a trace was recorded on."""
    kept = trace.facts.get("model_facts")
    if not isinstance(kept, dict):
        raise UsageError("this trace does not say what model it is of: record it with `tune trace`")
    try:
        return ModelFacts.from_json(kept)
    except CONTENT_ERRORS as error:
        raise UsageError(
            f"this trace describes no model ({error}): record it again with `tune trace`"
        ) from None


def timings_for(facts: ModelFacts, device: str, file: Path | None = None) -> ModelTimings:
    """This model's measured timings, those of a file, or those from a machine's published figures.

    device: the engine's name of it; `predicted:<machine>` takes published figures. Raises
    UsageError if nothing was measured.
    """
    if file is not None:
        return read_timings(file)
    if device.startswith("predicted:"):
        return predicted_timings(load_machine(device.removeprefix("predicted:")), facts)
    machine = probe(cache_folder()).fingerprint
    found = load_timings(timings_path(cache_folder(), machine, facts.fingerprint, device))
    if found is None:
        known = not device.startswith(PREFIX)
        other = "; `tune replay --device predicted:<machine>` needs none" if known else ""
        raise UsageError(
            f"this model was not timed on {device} of this machine: run `tune profile --model "
            f"{facts.id} --device {device}` first{other}"
        )
    return found


def replay_configs(
    configs: Mapping[str, EngineConfig],
    facts: ModelFacts,
    trace: Trace,
    timings: ModelTimings,
    learned: Mapping[str, Any] | None = None,
    history: Trace | None = None,
    warm_groups: int = 0,
) -> list[ReplayRow]:
    """Predicts each config. learned: arrays of trained predictors; history: initial statistics;
    warm_groups: how many of the trace's groups of sequences come first and are not counted."""
    warm = [n for n, item in enumerate(trace.passes) if item.group < warm_groups]
    rows = []
    known: dict[str, Decisions] = {}
    for name, config in configs.items():
        started = time.perf_counter()
        row = ReplayRow(name, config.to_dict())
        try:
            found = replay(
                with_table(config, facts, cache_folder()),
                facts,
                trace,
                timings,
                history=history,
                learned=dict(learned or {}),
                warm=warm,
                known=known,
            )
        except EngineError as error:
            row.error = str(error)
        else:
            row.config = found.config.to_dict()
            row.metrics = found.metrics(set(range(len(trace.passes))) - set(warm))
            if len(run_bits(found.config)) == 1:  # the bound assumes one record size
                row.metrics.update(_bound(found.policy.cache.slots_by_pool, trace, warm))
        row.seconds = time.perf_counter() - started
        rows.append(row)
    if all(row.error for row in rows):
        raise StudyError("; ".join(f"{row.name or 'the config'}: {row.error}" for row in rows))
    return rows


def longest(trace: Trace) -> int:
    """Tokens of the trace's longest sequence, at least 64."""
    lengths: dict[int, int] = {}
    for item in trace.passes:
        lengths[item.group] = lengths.get(item.group, 0) + max(item.tokens)
    return max(64, *lengths.values())


def _bound(pools: tuple[int, ...], trace: Trace, warm: list[int]) -> dict[str, float]:
    counted = set(range(len(trace.passes))) - set(warm)
    bound = best_hits(trace, pools, counted)
    return {
        "oracle_hit_rate": bound.hit_rate("decode"),
        "oracle_hit_rate.prefill": bound.hit_rate("prefill"),
    }
