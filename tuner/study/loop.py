"""Trials of a study one after another: Optuna proposes, the runner runs, our tables keep.

In: a runner, a searcher where the search is ours. Out: stored trials. It ends when enough are done,
time is over, or nothing that is left is promising. It must not know what comes before or after.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from tuner.definition import objectives
from tuner.definition.study import StudyDefinition
from tuner.errors import StoreError
from tuner.processes.identity import own_id
from tuner.search.guided_sampler import GuidedSampler
from tuner.search.samplers import (
    LEARN_FROM_PRUNED,
    open_sampler,
)
from tuner.search.searcher import Searcher
from tuner.search.space import (
    Point,
    SearchSpace,
)
from tuner.store.database import explained
from tuner.store.repository import Store, TrialOutcome
from tuner.store.snapshots import (
    CORNER,
    DEFAULT,
    FINISHED_STATES,
    MEASURED_STATES,
    StudySnapshot,
    TrialSnapshot,
)
from tuner.study.optuna_storage import (
    enqueue,
    fail_lost,
    open_memory,
    open_storage,
    origin_of,
    seconds_left,
)
from tuner.study.trial import TrialRunner
from tuner.study.warm_start import starting_points

# A study of fewer trials leaves all but the first to the sampler.
CORNERS_FROM_TRIALS = 8


class FailedTrialError(Exception):
    """Tells Optuna that a trial failed; the store knows why."""


@dataclass(frozen=True)
class TrialLoop:
    """done: called after each trial that ended here, with all of the study; interrupted: whether
    somebody asked to stop."""

    definition: StudyDefinition
    study: StudySnapshot
    store: Store
    space: SearchSpace
    runner: TrialRunner
    searcher: Searcher | None
    done: Callable[[TrialSnapshot | None, tuple[TrialSnapshot, ...]], None]
    interrupted: Callable[[], bool] = lambda: False

    def run(self, *, leading: bool, most: int | None, timeout_s: float | None) -> None:
        """leading: this process also queues what is to be tried first, and what was lost; most:
        trials at most; timeout_s: after which none starts here, the others know it from the
        deadline that the leading process keeps."""
        with (
            explained(self.store.database.url),
            open_storage(self.store.database, self.store, self.study) as storage,
            open_sampler(
                self.definition.sampler, self._seed(leading), self.space, self.definition.trials
            ) as plain,
        ):
            sampler = plain
            if self.searcher is not None:
                sampler = GuidedSampler(self.searcher, self._trials, plain)
            memory = open_memory(storage, sampler, self.definition)
            if leading:
                trials = self._trials()
                fail_lost(memory, trials)
                enqueue(memory, trials, self._first())
            else:
                timeout_s = seconds_left(memory)
            memory.optimize(
                self._objective,
                n_trials=most,
                timeout=timeout_s,
                catch=(FailedTrialError,),
                callbacks=[self._after],
            )

    def _seed(self, leading: bool) -> int:
        """Another one for each process and each start, so that none repeats what another drew; one
        for all of a grid, which numbers its points by it."""
        if self.definition.sampler == "grid":
            return self.definition.seed
        own = 0 if leading else 1 + zlib.crc32(own_id().encode()) % 1_000_000
        return self.definition.seed + len(self._trials()) + own

    def _first(self) -> list[tuple[str, Point]]:
        """The default config is trial 0; then what earlier studies recommend. Without predictions,
        `auto` also begins with the default at every precision, since bits matter most."""
        first: list[tuple[str, Point]] = [(DEFAULT, self.space.default())]
        if self.searcher is not None:
            first += starting_points(self.store, self.study, self.space)
        blind = self.searcher is not None and not self.searcher.predictions.logs
        if blind and self.definition.trials >= CORNERS_FROM_TRIALS:
            first += [(CORNER, point) for point in self.space.precision_corners()]
        return first

    def _objective(self, trial: Any) -> list[float]:
        if self.interrupted():
            raise KeyboardInterrupt
        point = {
            p.name: trial.suggest_categorical(p.name, p.choices) for p in self.space.parameters
        }
        trial_id = self.store.start_trial(
            self.study.id, trial.number, point, own_id(), origin_of(trial)
        )
        try:
            outcome = self.runner.run(trial_id, point)
        except BaseException as error:
            lost = TrialOutcome("INTERRUPTED", "interrupted", "stopped while this trial ran")
            if not isinstance(error, StoreError):
                self.store.finish_trial(trial_id, lost)
            raise
        self.store.finish_trial(trial_id, outcome)
        return self._tell_sampler(trial, outcome)

    def _tell_sampler(self, trial: Any, outcome: TrialOutcome) -> list[float]:
        if outcome.state == "FAILED":
            raise FailedTrialError(outcome.reason)
        found = outcome.violations or {}
        for name in objectives.CONSTRAINTS:
            trial.set_constraint(name, found.get(name, 0.0))
        if outcome.state in MEASURED_STATES:
            scores = outcome.scores or {}
            return [scores[name] for name in self.definition.objectives]
        if self.definition.sampler in LEARN_FROM_PRUNED:
            raise optuna.TrialPruned(outcome.reason)
        return [objectives.WORST[name] for name in self.definition.objectives]

    def _after(self, memory: Any, trial: Any) -> None:
        trials = self._trials()
        self.done(next((t for t in trials if t.number == trial.number), None), trials)
        finished = [t for t in trials if t.state in FINISHED_STATES]
        running = sum(t.state == "RUNNING" for t in trials)
        spent = len(finished) + running >= self.definition.trials
        over = self.store.study(self.study.name).state != "RUNNING"  # whoever leads it has stopped
        if over or spent or _distinct(finished) >= self.space.size or self._exhausted(trials):
            memory.stop()

    def _exhausted(self, trials: Sequence[TrialSnapshot]) -> bool:
        return self.searcher is not None and self.searcher.exhausted(trials)

    def _trials(self) -> tuple[TrialSnapshot, ...]:
        return self.store.trials(self.study)


def _distinct(trials: Sequence[TrialSnapshot]) -> int:
    return len({tuple(sorted((k, str(v)) for k, v in t.params.items())) for t in trials})
