"""The trial loop: Optuna proposes, the runner runs, our tables record.

In: a runner, and a searcher if the search is ours. Out: stored trials. It ends when enough trials
are done, time is over, or no candidate is expected to improve the front. It must not know the
stages before and after.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState as OptunaState

from tuner.definition.objectives import CONSTRAINTS, OBJECTIVES
from tuner.errors import StoreError
from tuner.processes.identity import own_id
from tuner.search.guided_sampler import GuidedSampler
from tuner.search.samplers import LEARN_FROM_PRUNED, open_sampler
from tuner.search.searcher import Searcher
from tuner.search.space import Point
from tuner.store.database import explained
from tuner.store.outcome import TrialOutcome
from tuner.store.snapshots import CORNER, DEFAULT, MEASURED_STATES, TrialSnapshot
from tuner.study.context import StudyContext, StudyState
from tuner.study.optuna_storage import (
    ask,
    beating,
    enqueue,
    fail_lost,
    open_memory,
    open_storage,
    origin_of,
    seconds_left,
)
from tuner.study.trial import TrialRunner
from tuner.study.warm_start import starting_points

# A study with fewer trials leaves all but the first to the sampler.
CORNERS_FROM_TRIALS = 8


class _TrialEnd(Exception):  # noqa: N818  # a trial without values is no error
    """A trial that has no values for the sampler; our store has the reason."""

    def __init__(self, state: OptunaState) -> None:
        super().__init__(state.name)
        self.state = state


@dataclass(frozen=True)
class TrialLoop:
    """Runs trials of one study. done: called after each trial that ended here, with `state`
    refreshed."""

    context: StudyContext
    state: StudyState
    runner: TrialRunner
    searcher: Searcher | None
    done: Callable[[TrialSnapshot | None], None]

    def run(self, *, leading: bool, most: int | None, timeout_s: float | None) -> None:
        """Runs trials until the study needs no more.

        leading: this process also queues the first points and lost ones; most: limit on trials;
        timeout_s: seconds after which none starts here; other workers read the deadline that the
        leading process stores.
        """
        definition, store = self.context.definition, self.context.store
        self.state.refresh()
        seed = self._seed(leading)
        began_s = time.monotonic()

        def left_s() -> float | None:
            return None if timeout_s is None else timeout_s - (time.monotonic() - began_s)

        with (
            explained(store.database.url),
            open_storage(store.database, store, self.context.study) as storage,
            open_sampler(definition.sampler, seed, self.context.space, definition.trials) as plain,
        ):
            sampler = plain
            if self.searcher is not None:
                sampler = GuidedSampler(self.searcher, lambda: self.state.trials, plain, left_s)
            memory = open_memory(storage, sampler, definition)
            if leading:
                fail_lost(memory, self.state.trials)
                enqueue(memory, self.state.trials, self._first())
            else:
                timeout_s = seconds_left(memory)
            ran = 0
            while ran != most and (timeout_s is None or time.monotonic() - began_s < timeout_s):
                number = self._run_one(memory, storage)
                ran += 1
                if self._over(number, left_s()):
                    return

    def _seed(self, leading: bool) -> int:
        """A seed that differs for each process and start, so that no draws repeat; the same one for
        all workers of a grid, which numbers its points by it."""
        definition = self.context.definition
        if definition.sampler == "grid":
            return definition.seed
        own = 0 if leading else 1 + zlib.crc32(own_id().encode()) % 1_000_000
        return definition.seed + len(self.state.trials) + own

    def _first(self) -> list[tuple[str, Point]]:
        """The first points: the default config as trial 0, then those that earlier studies
        recommend. Without predictions, `auto` adds the default at every precision, since bits
        matter most."""
        context, space = self.context, self.context.space
        first: list[tuple[str, Point]] = [(DEFAULT, space.default())]
        if self.searcher is not None:
            first += starting_points(context.store, context.study, space)
        blind = self.searcher is not None and not self.searcher.predictions.logs
        if blind and context.definition.trials >= CORNERS_FROM_TRIALS:
            first += [(CORNER, point) for point in space.precision_corners()]
        return first

    def _run_one(self, memory: Any, storage: Any) -> int:
        """Asks for a trial, runs it and tells its outcome; returns its number.

        Not by Study.optimize: an interrupt or a database error while it tells becomes an error of
        its own there.
        """
        trial = ask(memory)
        try:
            with beating(storage, trial):
                values = self._run_trial(trial)
        except _TrialEnd as end:
            memory.tell(trial, state=end.state)
        except BaseException:
            with contextlib.suppress(Exception):  # what ended the trial matters more
                memory.tell(trial, state=OptunaState.FAIL)
            raise
        else:
            memory.tell(trial, values)
        return int(trial.number)

    def _run_trial(self, trial: Any) -> list[float]:
        context = self.context
        if context.interrupted():
            raise KeyboardInterrupt
        point = {
            p.name: trial.suggest_categorical(p.name, p.choices) for p in context.space.parameters
        }
        trial_id = context.store.start_trial(
            context.study.id, trial.number, point, own_id(), origin_of(trial)
        )
        context.progress.trial_began(trial.number)
        try:
            outcome = self.runner.run(trial_id, point)
        except BaseException as error:
            lost = TrialOutcome("INTERRUPTED", "interrupted", "stopped while this trial ran")
            if not isinstance(error, StoreError):
                context.store.finish_trial(trial_id, lost)
            raise
        context.store.finish_trial(trial_id, outcome)
        return self._values(trial, outcome)

    def _values(self, trial: Any, outcome: TrialOutcome) -> list[float]:
        """The values that the sampler receives for an outcome."""
        if outcome.state == "FAILED":
            raise _TrialEnd(OptunaState.FAIL)
        found = outcome.violations or {}
        for name in CONSTRAINTS:
            trial.set_constraint(name, found.get(name, 0.0))
        if outcome.state in MEASURED_STATES:
            scores = outcome.scores or {}
            return [scores[name] for name in self.context.definition.objectives]
        if self.context.definition.sampler in LEARN_FROM_PRUNED:
            raise _TrialEnd(OptunaState.PRUNED)
        return [OBJECTIVES[name].worst for name in self.context.definition.objectives]

    def _over(self, number: int, left_s: float | None) -> bool:
        """Reports the trial that ended; True if the study needs no more."""
        self.state.refresh()
        self.done(next((t for t in self.state.trials if t.number == number), None))
        # the leading process has stopped
        over = self.context.store.study(self.context.study.name).state != "RUNNING"
        seen = _distinct(self.state.finished) >= self.context.space.size
        return over or seen or self.state.unclaimed <= 0 or self._exhausted(left_s)

    def _exhausted(self, left_s: float | None) -> bool:
        searcher = self.searcher
        return searcher is not None and searcher.exhausted(self.state.trials, left_s)


def _distinct(trials: Sequence[TrialSnapshot]) -> int:
    return len({tuple(sorted((k, str(v)) for k, v in t.params.items())) for t in trials})
