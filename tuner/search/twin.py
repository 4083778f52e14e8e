"""Predicts a config's speed by replaying one trace over timings.

In: a trace of single sequences, timings. Out: speeds of any config whose batch, cache, prefetch and
precision settings the replay supports. Measurements correct its errors (tuner.search.posterior);
the error on every measured trial is stored beside it.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.config.settings import EngineConfig
from engine.errors import EngineError
from engine.facts.adjusted_timings import corrected, with_longer_waits
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings
from engine.precision.allocate import with_table
from engine.replay.decisions import Decisions, decision_key
from engine.replay.regroup import regroup
from engine.replay.simulate import may_use_host, replay, resolve_for
from engine.trace.trace import Trace
from tuner.definition.objectives import SPEEDS
from tuner.folders import cache_folder
from tuner.search.candidates import Candidates
from tuner.search.posterior import Floats, Regression

log = logging.getLogger(__name__)

ROUNDS = 2  # of the workload in a trace: the first one warms the cache, uncounted
PARTS = ("compute", "non_expert", "router", "policy", "other")
LEAST_FACTOR = 0.2  # of a part
WAITING = ("compute", "non_expert", "policy")  # parts that waits or transfers make longer
PROBE_S = 1e-6
Batches = tuple[int, int, int]
"""Micro-batches, sequences of each, tokens of a prefill chunk: how a trace is regrouped."""
FEWEST = 8  # predictions needed to interpolate the others


@dataclass
class Twin:
    """Predicts one model on one workload and machine by replay.

    trace: ROUNDS rounds of `sequences` sequences, recorded one at a time; learned: arrays of
    trained predictors; host_bytes: the most that a host tier gets here without a RAM budget, None
    if that is not known.
    """

    facts: ModelFacts
    trace: Trace
    timings: ModelTimings
    sequences: int
    learned: Mapping[str, Any] = field(default_factory=dict)
    host_bytes: int | None = None
    _seen_as: dict[Batches, Trace] = field(default_factory=dict, init=False)
    _decided: dict[Batches, dict[str, Decisions]] = field(
        default_factory=lambda: defaultdict(dict), init=False
    )

    def predict(self, config: EngineConfig) -> dict[str, float] | None:
        """The predicted speeds; None if this config cannot be replayed."""
        metrics = self._replayed(config, self.timings)
        if metrics is None or not set(SPEEDS) <= set(metrics):
            return None
        return {name: metrics[name] for name in SPEEDS}

    def has_decided(self, config: EngineConfig) -> bool:
        """Whether a config was predicted whose decisions are the same: then only its time is to be
        found, a hundredth of the work."""
        try:
            resolved = resolve_for(self._planned(config), self.facts, self.timings)
        except EngineError:
            return False
        has_host = may_use_host(resolved.config, self.facts, self.timings)
        key = decision_key(resolved, has_host=has_host)
        return key in self._decided[_batches(resolved.config)]

    def corrected_by(self, config: EngineConfig, measured: Mapping[str, float]) -> Twin:
        """A copy whose parts take as long as they did in a run of `config`. measured: its metrics,
        of which the time split is used.

        Layers that asked the policy and layers that were passed without are told apart by the
        replay: of each part, the kind that took longer is corrected, the other believed. What
        native products took beyond what was expected is taken for a cost of each wait and of each
        transfer if there were many: what they cost without was timed.
        """
        took = _split_of(measured)
        whole = self._split(config, self.timings)
        asked = self._split(config, corrected(self.timings, {}, dict.fromkeys(PARTS, 0.0)))
        factors: dict[str, float] = {}
        of_ready: dict[str, float] = {}
        each_wait: dict[str, float] = {}
        for part in took.keys() & whole.keys():
            more_s, asked_s = took[part] - whole[part], asked.get(part, 0.0)
            if took[part] <= 0 or whole[part] <= 0:
                continue
            if asked_s < whole[part] / 2:
                of_ready[part] = _factor(whole[part] - asked_s, more_s)
            elif more_s > 0 and (waits := self._waits(config, part, whole)):
                each_wait[part] = more_s / waits
            else:
                factors[part] = _factor(asked_s, more_s)
        timings = corrected(self.timings, factors, of_ready)
        for part, seconds in each_wait.items():
            timings = with_longer_waits(timings, part, seconds)
        return replace(self, timings=timings)

    def _waits(self, config: EngineConfig, part: str, whole: Mapping[str, float]) -> float:
        """How many waits, or transfers, of a token make this part longer; 0 if there are few, or
        products are not native. whole: seconds by part."""
        if not self.timings.restart_non_expert_s or part not in WAITING:
            return 0.0
        longer = self._split(config, with_longer_waits(self.timings, part, PROBE_S))
        found = (longer[part] - whole[part]) / PROBE_S
        return found if found >= self.facts.moe_layers / 2 else 0.0

    def _split(self, config: EngineConfig, timings: ModelTimings) -> dict[str, float]:
        return _split_of(self._replayed(config, timings) or {})

    def _replayed(self, config: EngineConfig, timings: ModelTimings) -> dict[str, float] | None:
        try:
            planned = self._planned(config)
            batches = _batches(planned)
            trace = self._as_run(batches)
            warm = [
                number
                for number, item in enumerate(trace.passes)
                if item.group < self._warm_groups(planned)
            ]
            found = replay(
                planned,
                self.facts,
                trace,
                timings,
                learned=dict(self.learned),
                warm=warm,
                known=self._decided[batches],
            )
            return found.metrics(set(range(len(trace.passes))) - set(warm))
        except (EngineError, KeyError) as error:  # a precision that was not timed
            log.debug("no prediction: %s", error)
            return None

    def _planned(self, config: EngineConfig) -> EngineConfig:
        """The config as the engine would run it here."""
        planned = with_table(config, self.facts, cache_folder())
        wanted, most = config.host.bytes, self.host_bytes
        if most is None or config.budget.ram_bytes or isinstance(wanted, str) or wanted <= most:
            return planned
        return planned.overlay({"host.bytes": most})

    def _as_run(self, batches: Batches) -> Trace:
        if batches not in self._seen_as:
            self._seen_as[batches] = regroup(self.trace, *batches, together=self.sequences)
        return self._seen_as[batches]

    def _warm_groups(self, config: EngineConfig) -> int:
        together = config.batch.count * config.batch.size
        return (ROUNDS - 1) * -(-self.sequences // together)


def _split_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a token by part."""
    names = {part: f"time_ms_per_token.{part}" for part in PARTS}
    return {part: metrics[name] / 1e3 for part, name in names.items() if name in metrics}


def _factor(own_s: float, more_s: float) -> float:
    return max(LEAST_FACTOR, (own_s + more_s) / own_s)


def _batches(config: EngineConfig) -> Batches:
    return config.batch.count, config.batch.size, config.prefill.chunk_tokens


@dataclass(frozen=True)
class Predictions:
    """Log predictions of all candidates by metric. replayed: how many were replayed, the others are
    interpolated; spent_s: seconds that this took."""

    logs: Mapping[str, Floats]
    replayed: int
    spent_s: float

    def of(self, index: int) -> dict[str, float]:
        """The predicted speeds of one candidate."""
        return {name: float(np.exp(values[index])) for name, values in self.logs.items()}


def predict_all(twin: Twin, candidates: Candidates, within_s: float) -> Predictions:
    """Replays candidates, spread over the space, for within_s seconds, then only those whose
    decisions others have made already; interpolates the rest."""
    started = time.monotonic()
    found: dict[int, dict[str, float]] = {}
    for index in _spread(candidates):
        config = candidates.items[index].config
        is_late = len(found) >= FEWEST and time.monotonic() - started > within_s
        if is_late and not twin.has_decided(config):
            continue
        predicted = twin.predict(config)
        if predicted is not None:
            found[index] = predicted
    logs: dict[str, Floats] = {}
    if len(found) >= min(FEWEST, len(candidates)):
        regression = Regression(candidates.axes(), len(candidates))
        known = sorted(found)
        for name in SPEEDS:
            values = np.log([found[index][name] for index in known])
            logs[name] = regression.fill(known, values, len(candidates))
    return Predictions(logs, len(found), time.monotonic() - started)


def _spread(candidates: Candidates) -> Iterable[int]:
    """All candidates in farthest-point order: those far from the earlier ones first."""
    size = len(candidates)
    places = np.stack([axis.ranks for axis in candidates.axes()] or [np.zeros(size)], axis=1)
    nearest = np.full(size, np.inf)
    index = 0
    for _ in range(size):
        yield index
        nearest = np.minimum(nearest, np.linalg.norm(places - places[index], axis=1))
        nearest[index] = -1.0
        index = int(np.argmax(nearest))
