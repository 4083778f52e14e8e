"""The data that a study's stages share: StudyContext, which never changes, and StudyState, which is
read from the store once per trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from engine.contract.requests import Workload
from engine.facts.machine import Hardware
from tuner.definition.study import StudyDefinition
from tuner.engine_client.session import EngineSession
from tuner.pareto.budget_curve import CurvePoint, fronts_by_budget
from tuner.pareto.front import Front
from tuner.search.space import SearchSpace
from tuner.store.repository import Store
from tuner.store.snapshots import FINISHED_STATES, StudySnapshot, TrialSnapshot
from tuner.study.progress import StudyProgress
from tuner.study.pruning import Incumbents, incumbents_of


@dataclass(frozen=True)
class StudyContext:
    """One study in one process. interrupted: whether a stop was requested, checked before each
    trial; started_s: of time.monotonic()."""

    definition: StudyDefinition
    session: EngineSession
    store: Store
    hardware: Hardware
    progress: StudyProgress
    workload: Workload
    space: SearchSpace
    study: StudySnapshot
    interrupted: Callable[[], bool] = lambda: False
    started_s: float = field(default_factory=time.monotonic)

    def add_spent(self, stage: str, seconds: float) -> None:
        """Adds seconds to a stage of the study."""
        self.store.add_spent(self.study.id, stage, seconds)

    def seconds_left(self, fraction: float) -> float | None:
        """Seconds left of this fraction of --timeout, at least 1; None without a timeout."""
        timeout_s = self.definition.timeout_s
        if not timeout_s:
            return None
        return max(1.0, fraction * timeout_s - (time.monotonic() - self.started_s))

    def samples(self, configuration_id: int) -> Mapping[str, Sequence[float]]:
        """The repeats of each speed of a configuration on this machine."""
        return self.store.pool(configuration_id, self.study.machine_id).values


class StudyState:
    """The trials as of the last `refresh`; front and incumbents are computed at most once per
    refresh."""

    def __init__(self, context: StudyContext) -> None:
        self._context = context
        self.refresh()

    def refresh(self) -> None:
        """Reads the study's trials again."""
        self.trials: tuple[TrialSnapshot, ...] = self._context.store.trials(self._context.study)
        for name in ("curve", "members", "incumbents"):
            self.__dict__.pop(name, None)

    @cached_property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The front under each device budget, smallest first."""
        return fronts_by_budget(self._context.study, self.trials)

    @property
    def front(self) -> Front:
        """The front under the largest budget."""
        return self.curve[-1].front

    @cached_property
    def members(self) -> tuple[TrialSnapshot, ...]:
        """The members of all budgets' fronts, the recommended trials first."""
        fronts = [point.front for point in self.curve]
        knees = [front.knee for front in fronts[::-1] if front.members]
        every = [*knees, *(member for front in fronts for member in front.members)]
        return tuple({member.number: member for member in every}.values())

    @cached_property
    def incumbents(self) -> Incumbents:
        """The front that prunes other trials."""
        return incumbents_of(self._context.definition.objectives, self.members, self.trials)

    @property
    def finished(self) -> tuple[TrialSnapshot, ...]:
        """Trials that have ended without being interrupted."""
        return tuple(trial for trial in self.trials if trial.state in FINISHED_STATES)

    @property
    def left(self) -> int:
        """The number of trials that have not ended yet, running ones included."""
        return self._context.definition.trials - len(self.finished)

    @property
    def unclaimed(self) -> int:
        """The number of trials that no worker has started yet."""
        return self.left - sum(trial.state == "RUNNING" for trial in self.trials)

    @property
    def first_measured(self) -> TrialSnapshot | None:
        """The first completed trial; None if there is none yet."""
        return next((trial for trial in self.trials if trial.state == "COMPLETE"), None)
