"""A study from its first trial to its last, resumable at any moment.

In: a definition, an open engine session, a store. Out: StudyResult. Stages: prepare (machine,
trace, twin), search, confirm. Optuna hands out trials, our tables are the record. The recommended
config is on disk after every trial.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.contract.requests import Workload
from engine.facts.machine import Hardware
from tuner.definition.study import StudyDefinition
from tuner.deployment.export import (
    check_writable,
    render,
    write_atomically,
)
from tuner.engine_client.session import EngineSession
from tuner.errors import StudyError, UsageError, WorkerError
from tuner.folders import studies_folder
from tuner.pareto.budget_curve import fronts_by_budget
from tuner.pareto.front import Front
from tuner.pareto.probability import front_of
from tuner.processes.identity import (
    is_gone,
    own_id,
)
from tuner.quality.judge import (
    PASSING,
    QualityJudge,
)
from tuner.search.searcher import Searcher
from tuner.search.space import (
    SearchSpace,
    build_space,
)
from tuner.store.database import explained
from tuner.store.lock import study_lock
from tuner.store.repository import Store
from tuner.store.snapshots import (
    FINISHED_STATES,
    StudySnapshot,
    TrialSnapshot,
)
from tuner.study.confirm import Confirmation
from tuner.study.loop import TrialLoop
from tuner.study.optuna_storage import (
    keep_deadline,
    open_memory,
    open_storage,
)
from tuner.study.prepare import Preparation
from tuner.study.progress import Progress
from tuner.study.pruning import (
    Incumbents,
    competitive,
    incumbents_of,
)
from tuner.study.trial import TrialRunner
from tuner.workers.local import (
    ALONE,
    WorkerPool,
    devices_for,
    joined_workers,
)
from tuner.workers.ray_cluster import placed_workers

log = logging.getLogger(__name__)

# Of a study's --timeout, kept for confirming its front.
CONFIRMING_FRACTION = 0.2
MOST_CONFIRMED = 8
MOST_PASSES = 3
MOST_ROUNDS = 3  # of searching, should workers die


@dataclass(frozen=True)
class StudyResult:
    """How a study stands when its run ends. output: the recommended config, None without one;
    ended_early: before its trials were spent, since nothing left was promising."""

    study: StudySnapshot
    trials: tuple[TrialSnapshot, ...]
    front: Front
    output: str | None
    ended_early: bool = False


def run_study(
    definition: StudyDefinition,
    session: EngineSession,
    store: Store,
    hardware: Hardware,
    progress: Progress,
    pool: WorkerPool = ALONE,
    estimate_s: float | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> StudyResult:
    """Run, or continue, a study until its trials or its time are spent, or nothing is promising.

    pool: who runs trials beside this process; estimate_s: how long it is expected to take;
    interrupted: whether somebody asked to stop, looked at before each trial.

    Raises InfeasibleStudyError when nothing fits, StudyError when the name is taken or a cluster
    cannot be used, UsageError for a task that does not exist. On KeyboardInterrupt the study is
    left resumable and the interrupt goes on.
    """
    check_writable(definition.output_path)
    _check_tasks(definition, session)
    with study_lock(store.database.url, definition.study_name):
        workload = definition.load_workload()
        space = build_space(definition, session.facts, workload)
        study = store.begin_study(definition, session.facts, hardware, workload)
        if estimate_s is not None:
            store.keep_estimate(study.id, estimate_s)
        run = _Run(
            definition, session, store, hardware, progress, workload, space, study, interrupted
        )
        with contextlib.ExitStack() as undo:
            undo.callback(store.set_study_state, study.id, "INTERRUPTED")
            undo.callback(store.interrupt_running, study.id, run.ends_with_us)  # runs first
            with progress.showing():
                run.lead(pool)
            undo.pop_all()
        store.set_study_state(study.id, "FINISHED")
        return run.result()


def join_study(
    study: StudySnapshot,
    definition: StudyDefinition,
    session: EngineSession,
    store: Store,
    hardware: Hardware,
    progress: Progress,
) -> int:
    """Run trials of a study that another process leads, until it needs no more; how many ran here.

    Raises StudyError where it does not run, or was begun on another kind of machine.
    """
    if study.state != "RUNNING":
        raise StudyError(
            f"study '{study.name}' does not run ({study.state}): start it with `tune --model "
            f"{study.model} --study {study.name} ...`, then let workers join"
        )
    if study.machine.get("fingerprint") != hardware.fingerprint:
        raise StudyError(
            f"study '{study.name}' was begun on another kind of machine "
            f"({study.machine.get('cpu', '?')}): speeds measured here would not compare"
        )
    workload = definition.load_workload()
    space = build_space(definition, session.facts, workload)
    run = _Run(definition, session, store, hardware, progress, workload, space, study)
    with progress.showing():
        return run.join()


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
    """A wrong name would fail every trial; data that cannot be reached now may come back. Where the
    engine dies over the question, twice, trials will say."""
    if "quality" not in definition.objectives:
        return
    unknown: Sequence[str] = ()
    for _ in range(2):
        try:
            unknown = session.unknown_tasks(definition.quality.tasks)
            break
        except WorkerError as error:
            if error.failure not in PASSING:
                raise
            log.warning("whether lm-eval knows the tasks could not be asked: %s", error)
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
    hardware: Hardware
    progress: Progress
    workload: Workload
    space: SearchSpace
    study: StudySnapshot
    interrupted: Callable[[], bool] = lambda: False
    started_s: float = field(default_factory=time.monotonic)
    searcher: Searcher | None = None
    runner: TrialRunner | None = None
    lost: set[str] = field(default_factory=set)  # workers whose node or process died

    def lead(self, pool: WorkerPool) -> None:
        """All stages, as the one parent of the study."""
        self._keep_deadline()
        self.store.interrupt_running(self.study.id, self.ends_with_us)
        trials = self._trials()
        if self._left(trials) > 0:
            self._prepare_runner()
            if self.definition.sampler == "auto":
                self._search(leading=True, most=0 if _first_measured(trials) else 1)
                self._prepare_searcher()
                trials = self._trials()
            for _ in range(MOST_ROUNDS):
                if self._left(trials) <= 0 or self._exhausted(trials):
                    break
                with self._joined(pool):
                    self._search(leading=True)
                # a worker that died leaves its trial, which the next round tries again
                if not self.store.interrupt_running(self.study.id, self._is_lost):
                    break
                trials = self._trials()
        self._write_best()
        self._confirm()
        self._write_best()

    def _keep_deadline(self) -> None:
        """Before anything that takes its time: whoever joins meanwhile must not go by the deadline
        of a former run."""
        database = self.store.database
        with explained(database.url), open_storage(database, self.store, self.study) as storage:
            memory = open_memory(storage, None, self.definition)
            keep_deadline(memory, self._seconds_left(1 - CONFIRMING_FRACTION))

    def join(self) -> int:
        """The search alone, beside a parent; how many trials ran here."""
        self._prepare_runner()
        if self.definition.sampler == "auto":
            self._prepare_searcher()
        if self._open(self._trials()) > 0:
            self._search(leading=False)
        return sum(trial.worker == own_id() for trial in self._trials())

    def result(self) -> StudyResult:
        study = self.store.study(self.study.name)
        trials = self.store.trials(study)
        front = front_of(self.study, trials)
        output = str(self.definition.output_path) if front.members else None
        early = self._left(trials) > 0 and self._exhausted(trials)
        return StudyResult(study, trials, front, output, early)

    def _prepare_searcher(self) -> None:
        """What our search needs; the first trial that was measured helps to predict the others."""
        preparation = Preparation(
            self.definition,
            self.session,
            self.hardware,
            self.workload,
            self.space,
            self.progress.notify,
            lambda stage, seconds: self.store.add_spent(self.study.id, stage, seconds),
            _first_measured(self._trials()),
        )
        self.searcher = preparation.searcher()

    def _prepare_runner(self) -> None:
        self.runner = TrialRunner(
            self.session,
            self.store,
            self.study,
            self.definition,
            self.workload,
            self.space,
            self._judge(),
            self.progress.notify,
            self._incumbents,
            lambda point: self.searcher.predict(point) if self.searcher is not None else {},
        )

    def _joined(self, pool: WorkerPool) -> contextlib.AbstractContextManager[None]:
        """The other workers, while they are wanted."""
        url, trust = self.store.database.url, self.definition.trust_remote_code
        if pool.ray is not None:
            return placed_workers(
                self.study.name,
                url,
                pool.ray,
                (self.definition.device, self.session.opened_device),
                trust,
                self.lost.add,
            )
        devices = devices_for(self.definition.device, self.hardware, pool.workers)[1:]
        return joined_workers(self.study.name, url, devices, trust)

    def ends_with_us(self, worker: str | None) -> bool:
        """Whether a trial of that worker runs no more when this process leaves the study."""
        return worker == own_id() or self._is_lost(worker)

    def _is_lost(self, worker: str | None) -> bool:
        return worker in self.lost or is_gone(worker)

    def _exhausted(self, trials: Sequence[TrialSnapshot]) -> bool:
        return self.searcher is not None and self.searcher.exhausted(trials)

    def _search(self, *, leading: bool, most: int | None = None) -> None:
        """Trials until there are enough; most: at most so many."""
        if most == 0:
            return
        assert self.runner is not None
        loop = TrialLoop(
            self.definition,
            self.study,
            self.store,
            self.space,
            self.runner,
            self.searcher,
            self._after_trial,
            self.interrupted,
        )
        started_s = time.monotonic()
        try:
            timeout_s = self._seconds_left(1 - CONFIRMING_FRACTION)
            loop.run(leading=leading, most=most, timeout_s=timeout_s)
        finally:
            if leading:
                self.store.add_spent(self.study.id, "search", time.monotonic() - started_s)

    def _confirm(self) -> None:
        """The front again, in fresh processes; then what these samples put onto it instead."""
        rounds = self.definition.confirm_rounds
        if not rounds:
            return
        until_s = None
        if self.definition.timeout_s:
            until_s = self.started_s + self.definition.timeout_s
        confirmation = Confirmation(
            self.session,
            self.store,
            self.study,
            self.workload,
            self.definition.seed,
            self.progress.notify,
        )
        started_s = time.monotonic()
        looked_at: set[int] = set()
        for left in reversed(range(MOST_PASSES)):
            confirmed = confirmation.run(self._members()[:MOST_CONFIRMED], rounds, until_s)
            # what the last pass finished would not be confirmed any more
            finished = self._reevaluate(until_s, looked_at) if left else 0
            if not finished and not confirmed:
                break
        self.store.add_spent(self.study.id, "confirm", time.monotonic() - started_s)

    def _reevaluate(self, until_s: float | None, looked_at: set[int]) -> int:
        """What ended early, and is pruned no more now that more is known, runs to its end, unless
        it was looked at; how many did."""
        every = competitive(self._trials(), self._incumbents(), self._samples)
        found = [trial for trial in every if trial.id not in looked_at][:MOST_CONFIRMED]
        if found and self.runner is None:
            self._prepare_runner()
        done = 0
        for trial in found:
            if until_s is not None and time.monotonic() > until_s:
                break
            if self.interrupted():
                raise KeyboardInterrupt
            assert self.runner is not None
            looked_at.add(trial.id)
            self.progress.notify(f"trial {trial.number} again: nothing beats it any more")
            outcome = self.runner.run(trial.id, trial.params)
            if outcome.state == "FAILED":  # what was measured of it stays
                log.warning("trial %d could not be finished: %s", trial.number, outcome.reason)
                continue
            spent_s = (trial.engine_s or 0.0) + (outcome.engine_s or 0.0)
            outcome = replace(outcome, predicted=trial.predicted, engine_s=spent_s)
            self.store.finish_trial(trial.id, outcome)
            done += 1
        return done

    def _samples(self, configuration_id: int) -> Mapping[str, Sequence[float]]:
        return self.store.pool(configuration_id, self.study.machine_id).values

    def _seconds_left(self, fraction: float) -> float | None:
        timeout_s = self.definition.timeout_s
        if not timeout_s:
            return None
        return max(1.0, fraction * timeout_s - (time.monotonic() - self.started_s))

    def _trials(self) -> tuple[TrialSnapshot, ...]:
        return self.store.trials(self.study)

    def _left(self, trials: Sequence[TrialSnapshot]) -> int:
        return self.definition.trials - sum(t.state in FINISHED_STATES for t in trials)

    def _open(self, trials: Sequence[TrialSnapshot]) -> int:
        """How many trials nobody has begun yet."""
        return self._left(trials) - sum(trial.state == "RUNNING" for trial in trials)

    def _incumbents(self) -> Incumbents:
        return incumbents_of(self.definition.objectives, self._members(), self._trials())

    def _members(self) -> list[TrialSnapshot]:
        """Of the fronts of all budgets, each recommended one first."""
        fronts = [point.front for point in fronts_by_budget(self.study, self._trials())]
        knees = [front.knee for front in fronts[::-1] if front.members]
        every = [*knees, *(member for front in fronts for member in front.members)]
        return list({member.number: member for member in every}.values())

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

    def _after_trial(self, trial: TrialSnapshot | None, trials: tuple[TrialSnapshot, ...]) -> None:
        front = front_of(self.study, trials)
        if self.study.parent_pid == os.getpid():
            self._write_best(front)
        if trial is not None:
            done = sum(one.state in FINISHED_STATES for one in trials)
            self.progress.trial_done(trial, front, done, self.definition.trials)

    def _write_best(self, front: Front | None = None) -> None:
        if front is None:
            front = front_of(self.study, self._trials())
        if not front.members:
            return
        study = self.store.study(self.study.name)
        write_atomically(self.definition.output_path, render(study, front, front.knee))
        for point in fronts_by_budget(self.study, front.trials)[:-1]:
            if point.front.members:
                path = self.definition.curve_path(point.budget_bytes)
                write_atomically(path, render(study, point.front, point.front.knee))


def _first_measured(trials: Sequence[TrialSnapshot]) -> TrialSnapshot | None:
    return next((trial for trial in trials if trial.state == "COMPLETE"), None)
