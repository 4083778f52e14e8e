"""A study from its first trial to its last, resumable at any moment.

In: a definition, an open engine session, a store. Out: StudyResult. Optuna proposes, our tables
are the record. The recommended config is on disk after every trial.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState as OptunaState

from engine.hardware import Hardware
from engine.protocol import Workload
from tuner import objective
from tuner.definition import StudyDefinition
from tuner.errors import StoreError, StudyError, UsageError
from tuner.export import check_writable, render, write_atomically
from tuner.folders import studies_folder
from tuner.front import Front, front_of
from tuner.lock import study_lock
from tuner.progress import Progress
from tuner.quality import QualityJudge
from tuner.sampler import LEARN_FROM_PRUNED, build_sampler
from tuner.session import EngineSession
from tuner.space import SearchSpace, build_space
from tuner.store.database import explained
from tuner.store.repository import Store, TrialOutcome
from tuner.store.snapshots import FINISHED_STATES, StudySnapshot, TrialSnapshot
from tuner.trial import TrialRunner

log = logging.getLogger(__name__)

# A study of fewer trials leaves all but the first to the sampler.
CORNERS_FROM_TRIALS = 8


@dataclass(frozen=True)
class StudyResult:
    """How a study stands when its run ends. output: the recommended config, None without one."""

    study: StudySnapshot
    trials: tuple[TrialSnapshot, ...]
    front: Front
    output: str | None


class FailedTrialError(Exception):
    """Tells Optuna that a trial failed; the store knows why."""


def run_study(
    definition: StudyDefinition,
    session: EngineSession,
    store: Store,
    hardware: Hardware,
    progress: Progress,
) -> StudyResult:
    """Run, or continue, a study until its trials or its time are spent.

    Raises InfeasibleStudyError when nothing fits, StudyError when the name is taken, UsageError for
    a task that does not exist. On KeyboardInterrupt the study is left resumable and the interrupt
    goes on.
    """
    check_writable(definition.output_path)
    _check_tasks(definition, session)
    with study_lock(store.database.url, definition.study_name):
        workload = definition.load_workload()
        space = build_space(definition, session.facts, workload)
        study = store.begin_study(definition, session.facts, hardware, workload)
        run = _Run(definition, session, store, progress, workload, space, study)
        with contextlib.ExitStack() as undo:
            undo.callback(store.set_study_state, study.id, "INTERRUPTED")
            undo.callback(store.interrupt_running, study.id)  # runs first
            with progress.showing():
                run.search()
            undo.pop_all()
        store.set_study_state(study.id, "FINISHED")
        return run.result()


def with_default_tasks(definition: StudyDefinition) -> StudyDefinition:
    """Held-out text from studies/demo where quality is an objective and no task was named."""
    if "quality" not in definition.objectives or definition.quality.tasks:
        return definition
    task = studies_folder() / "demo" / "tasks" / "demo_bpb.yaml"
    if not task.is_file():
        raise StudyError(
            f"quality needs a task and the default {task} is missing: name one with --tasks, or "
            "study speed alone with --objectives output_tps,tpot_ms"
        )
    limit = definition.quality.limit or 40
    quality = definition.quality.model_copy(update={"tasks": [str(task)], "limit": limit})
    return definition.model_copy(update={"quality": quality})


def _check_tasks(definition: StudyDefinition, session: EngineSession) -> None:
    """A wrong name would fail every trial; data that cannot be reached now may come back."""
    if "quality" not in definition.objectives:
        return
    unknown = session.unknown_tasks(definition.quality.tasks)
    if unknown:
        raise UsageError(
            f"--tasks: lm-eval knows no task '{unknown[0]}': see `lm_eval ls tasks`, or give the "
            "path of a task's YAML file"
        )


@dataclass
class _Run:
    definition: StudyDefinition
    session: EngineSession
    store: Store
    progress: Progress
    workload: Workload
    space: SearchSpace
    study: StudySnapshot
    runner: TrialRunner | None = None

    def search(self) -> None:
        started_s = time.monotonic()
        self.store.interrupt_running(self.study.id)
        remaining = self.definition.trials - self._finished()
        if remaining <= 0:
            self._write_best()
            return
        self.runner = TrialRunner(
            self.session,
            self.store,
            self.study,
            self.definition,
            self.workload,
            self.space,
            self._judge(),
            self.progress.tell,
        )
        timeout_s = self.definition.timeout_s
        with explained(self.store.database.url), self._optuna_storage() as storage:
            memory = self._open_optuna(storage)
            self._enqueue(memory)
            left_s = max(1.0, timeout_s - (time.monotonic() - started_s)) if timeout_s else None
            memory.optimize(
                self._objective,
                n_trials=remaining,
                timeout=left_s,
                catch=(FailedTrialError,),
                callbacks=[self._after_trial],
            )

    def result(self) -> StudyResult:
        study = self.store.study(self.study.name)
        trials = self.store.trials(study)
        front = front_of(self.study, trials)
        output = str(self.definition.output_path) if front.members else None
        return StudyResult(study, trials, front, output)

    def _finished(self) -> int:
        counts = self.store.study(self.study.name).trials_by_state
        return sum(counts.get(state, 0) for state in FINISHED_STATES)

    def _judge(self) -> QualityJudge | None:
        if "quality" not in self.definition.objectives:
            return None
        return QualityJudge(
            self.session,
            self.store,
            self.study.model_id,
            self.definition.quality,
            self.definition.seed,
            self.space.base,
        )

    @contextlib.contextmanager
    def _optuna_storage(self) -> Iterator[Any]:
        """The sampler's memory lies in the same database; its connections end with the block."""
        url = self.store.database.engine.url
        storage = optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs=_engine_arguments(url.drivername),
        )
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def _open_optuna(self, storage: Any) -> Any:
        """The sampler's memory; its trials left running are failed."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            finished = self._finished()
            memory = optuna.create_study(
                storage=storage,
                sampler=build_sampler(
                    self.definition.sampler,
                    self.definition.seed + finished,
                    self.space,
                    self.definition.trials,
                ),
                study_name=self.study.name,
                directions=[objective.DIRECTIONS[name] for name in self.definition.objectives],
                load_if_exists=True,
            )
            for trial in memory.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
                memory.tell(trial.number, state=OptunaState.FAIL)
        return memory

    def _enqueue(self, memory: Any) -> None:
        """The default config is trial 0; what was interrupted comes again.

        The sampler `auto` also begins with the default at every precision, since bits matter most.
        """
        trials = self.store.trials(self.study)
        known = [dict(t.params) for t in trials if t.state in FINISHED_STATES]
        waiting = memory.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
        known += [dict(t.system_attrs.get("fixed_params", {})) for t in waiting]
        lost = [dict(t.params) for t in trials if t.state == "INTERRUPTED"]
        first = [self.space.default()]
        if self.definition.sampler == "auto" and self.definition.trials >= CORNERS_FROM_TRIALS:
            first += self.space.precision_corners()
        for point in [*first, *lost]:
            if point not in known:
                memory.enqueue_trial(point)
                known.append(point)

    def _objective(self, trial: Any) -> list[float]:
        point = {
            p.name: trial.suggest_categorical(p.name, p.choices) for p in self.space.parameters
        }
        trial_id = self.store.start_trial(self.study.id, trial.number, point)
        assert self.runner is not None
        try:
            outcome = self.runner.run(trial_id, point)
        except BaseException as error:
            words = (
                "the disk or the database failed" if isinstance(error, StoreError) else "stopped"
            )
            lost = TrialOutcome("INTERRUPTED", "interrupted", f"{words} while this trial ran")
            if not isinstance(error, StoreError):
                self.store.finish_trial(trial_id, lost)
            raise
        self.store.finish_trial(trial_id, outcome)
        return self._tell_sampler(trial, outcome)

    def _tell_sampler(self, trial: Any, outcome: TrialOutcome) -> list[float]:
        if outcome.state == "FAILED":
            raise FailedTrialError(outcome.reason)
        found = outcome.violations or {}
        for name in objective.CONSTRAINTS:
            trial.set_constraint(name, found.get(name, 0.0))
        if outcome.state == "COMPLETE":
            scores = outcome.scores or {}
            return [scores[name] for name in self.definition.objectives]
        if self.definition.sampler in LEARN_FROM_PRUNED:
            raise optuna.TrialPruned(outcome.reason)
        return [objective.WORST[name] for name in self.definition.objectives]

    def _after_trial(self, memory: Any, trial: Any) -> None:
        trials = self.store.trials(self.study)
        front = front_of(self.study, trials)
        self._write_best(front)
        done = [t for t in trials if t.state in FINISHED_STATES]
        latest = next((t for t in trials if t.number == trial.number), None)
        if latest is not None:
            self.progress.trial_done(latest, front, len(done), self.definition.trials)
        if _distinct(done) >= self.space.size:
            memory.stop()

    def _write_best(self, front: Front | None = None) -> None:
        if front is None:
            front = front_of(self.study, self.store.trials(self.study))
        if front.members:
            study = self.store.study(self.study.name)
            write_atomically(self.definition.output_path, render(study, front, front.knee))


def _distinct(trials: Sequence[TrialSnapshot]) -> int:
    return len({tuple(sorted((k, str(v)) for k, v in t.params.items())) for t in trials})


def _engine_arguments(driver: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 30}} if driver.startswith("sqlite") else {}
