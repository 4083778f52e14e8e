"""Prepares the searcher before the first trial: machine profile, trace, replay.

Each stage is reported to the user, its result is kept for the next study, and its seconds are
counted. Without a trace (a model without a tokenizer, an engine that records none) the search goes
on without predictions.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.derived.arrays import Arrays, load_arrays, save_arrays
from engine.derived.file import DerivedKind
from engine.errors import EngineError
from engine.facts.estimated_timings import profiled_timings
from engine.facts.timings import ModelTimings, load_timings, timings_path
from engine.files import json_digest, short_digest
from engine.memory.host import FREE_FRACTION
from engine.policy.learned import load_learned
from engine.trace.trace import Trace, load_kept_trace, load_trace
from tuner.definition.study import StudyDefinition
from tuner.definition.workload import workload_hash
from tuner.engine_client.machine_profile import machine_profile
from tuner.errors import WorkerError
from tuner.folders import cache_folder
from tuner.search.acquisition import Acquisition, Costs
from tuner.search.candidates import Candidates
from tuner.search.searcher import Searcher
from tuner.search.twin import ROUNDS, Predictions, Twin, predict_all
from tuner.store.snapshots import TrialSnapshot
from tuner.study.context import StudyContext

log = logging.getLogger(__name__)

VERSION = 5  # of replay and interpolation results for the same trace and timings
PREDICTIONS = DerivedKind("file of predictions", 1, "they are computed again")
TWIN_S = 10.0  # for replays: less than a trial takes
# Typical seconds of configuring an engine with its sentinel, and passes over the workload before
# the first repeat (docs/lab/).
CONFIGURE_S, WARM_UPS = 1.0, 2.0
# Free memory changes by the minute; what was predicted is kept as long as it hardly does.
_HOST_STEP = 1 << 28


def trial_costs(definition: StudyDefinition, workload: Workload, quality_s: float = 0.0) -> Costs:
    """The costs of a trial of this study. quality_s: of an evaluation."""
    tokens = workload.sequences * workload.output_tokens
    return Costs(CONFIGURE_S, WARM_UPS + definition.repeats.min, tokens, quality_s)


@dataclass(frozen=True)
class Preparation:
    """Prepares the searcher of one study. first: a completed trial, whose time split corrects the
    replay."""

    context: StudyContext
    first: TrialSnapshot | None = None

    def searcher(self) -> Searcher:
        """Builds the searcher; a stage that fails is reported and left out."""
        candidates = Candidates(self.context.space, self.context.definition.seed)
        predictions = self._predictions(candidates)
        acquisition = Acquisition(
            candidates,
            self.context.definition.objectives,
            self.context.definition.constraints,
            predictions.logs,
            trial_costs(
                self.context.definition,
                self.context.workload,
                self.context.session.evaluated_s,
            ),
        )
        return Searcher(candidates, acquisition, predictions)

    def _predictions(self, candidates: Candidates) -> Predictions:
        try:
            timings = self._timings()
            trace, path = self._trace()
        except (WorkerError, EngineError) as error:
            log.warning("the search goes on without predictions: %s", error)
            return Predictions({}, 0, 0.0)
        learned = load_learned(EngineConfig(), self.context.session.facts, cache_folder())
        kept = self._kept_path(candidates, path, timings, learned)
        found = _load(kept, len(candidates))
        if found is None:
            self.context.progress.began("predicting")
            with self._stage("twin"):
                facts = self.context.session.facts
                sequences = self.context.workload.sequences
                twin = Twin(facts, trace, timings, sequences, learned, self._host_bytes(candidates))
                twin = self._corrected(twin)
                found = predict_all(twin, candidates, TWIN_S)
            _keep(kept, found)
        return found

    def _corrected(self, twin: Twin) -> Twin:
        """Corrects the replay with the first trial's time split, if this model itself was not
        timed."""
        first = self.first
        if first is None or first.config is None or "profiled" not in twin.timings.notes:
            return twin
        measured = {name: metric.value for name, metric in first.metrics.items()}
        return twin.corrected_by(EngineConfig.from_dict(dict(first.config)), measured)

    def _timings(self) -> ModelTimings:
        """This model's timings if it was profiled, else derived from the machine's general
        speeds."""
        session = self.context.session
        facts, device = session.facts, session.opened_device
        path = timings_path(
            cache_folder(), self.context.hardware.fingerprint, facts.fingerprint, device
        )
        timed = load_timings(path)
        if timed is not None:
            return timed
        with self._stage("profile"):
            profile = machine_profile(session, self.context.hardware)
        return profiled_timings(profile, facts, device, together=session.decodes_together)

    def _trace(self) -> tuple[Trace, Path]:
        facts = self.context.session.facts
        name = f"{facts.fingerprint}-{workload_hash(self.context.workload)}-0-{ROUNDS}-single.npz"
        path = cache_folder() / "traces" / name
        recorded = load_kept_trace(path)
        if recorded is None:
            with self._stage("trace"):
                self.context.session.configure(self._plain_config())
                self.context.session.request(
                    "trace",
                    path=str(path.resolve()),
                    workload=self.context.workload.to_json(),
                    repeats=ROUNDS,
                    seed=0,
                    gate_inputs=False,
                )
            recorded = load_trace(path)
        return recorded, path

    def _plain_config(self) -> EngineConfig:
        """The default config with one sequence at a time and no predictor: routing is the same."""
        single = {
            "batch.count": 1,
            "batch.size": 1,
            "prefetch.predictor": "none",
            "prefetch.depth": 0,
        }
        return self.context.space.config(self.context.space.default()).overlay(single)

    def _host_bytes(self, candidates: Candidates) -> int:
        """The most that a host tier gets of the memory that is free, at most what any candidate
        asks for."""
        free_bytes = int(FREE_FRACTION * self.context.hardware.ram_available_bytes)
        wanted = max((int(item.config.host.bytes) for item in candidates.items), default=0)
        return min(wanted, free_bytes // _HOST_STEP * _HOST_STEP)

    def _kept_path(
        self,
        candidates: Candidates,
        trace: Path,
        timings: ModelTimings,
        learned: Mapping[str, Any],
    ) -> Path:
        known = [
            trace.name,
            json_digest(timings.to_json()),
            [item.config.digest() for item in candidates.items],
            # the trial that corrects the replay, by start time: numbers repeat between stores
            self.first.started.isoformat() if self.first is not None else None,
            self._host_bytes(candidates),
            {name: short_digest(array.tobytes()) for name, array in learned.items()},
            VERSION,
        ]
        return cache_folder() / "predictions" / f"{json_digest(known)}.npz"

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.context.add_spent(name, time.monotonic() - started)


def _load(path: Path, size: int) -> Predictions | None:
    def parse(arrays: Arrays) -> Predictions:
        replayed = int(arrays.pop("replayed"))
        if not arrays or any(len(values) != size for values in arrays.values()):
            raise ValueError(f"not of {size} configs")
        return Predictions(arrays, replayed, 0.0)

    return load_arrays(path, PREDICTIONS, parse)


def _keep(path: Path, found: Predictions) -> None:
    """Keeps predictions for other workers and the next study; an unwritable folder only costs
    time."""
    with contextlib.suppress(OSError):
        save_arrays(path, PREDICTIONS, {"replayed": found.replayed, **found.logs})
