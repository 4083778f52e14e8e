"""Runs a study from its first trial to its last; resumable at any time.

In: a definition, an open engine session, a store. Out: StudyResult. Stages: prepare (machine,
trace, replay), search, confirm. Optuna hands out trials, our tables are the record. The recommended
config is on disk after every trial.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.contract.requests import Workload
from engine.facts.machine import Hardware
from tuner.definition.study import StudyDefinition
from tuner.deployment.export import check_writable, render, write_atomically
from tuner.engine_client.session import EngineSession
from tuner.errors import StoreError, StudyError, TakenStudyError
from tuner.pareto.front import Front
from tuner.processes.identity import is_gone, own_id
from tuner.search.searcher import Searcher
from tuner.search.space import Choice, Point, SearchSpace, build_space
from tuner.store.database import explained
from tuner.store.lock import Keep, study_lock
from tuner.store.repository import Store
from tuner.store.snapshots import MEASURED_STATES, StudySnapshot, TrialSnapshot
from tuner.study.confirm import Confirmation
from tuner.study.context import StudyContext, StudyState
from tuner.study.displays import Kept
from tuner.study.estimate import likely_trials
from tuner.study.loop import TrialLoop
from tuner.study.memory import kept_correction, seen_path
from tuner.study.optuna_storage import keep_deadline, open_memory, open_storage
from tuner.study.prepare import Preparation
from tuner.study.progress import StudyProgress
from tuner.study.trial import TrialRunner
from tuner.workers.local import ALONE, WorkerPool, devices_for, joined_workers
from tuner.workers.ray_cluster import placed_workers

# Fraction of --timeout reserved for confirming the front.
CONFIRMING_FRACTION = 0.2
MOST_ROUNDS = 3  # of searching, in case workers die


@dataclass(frozen=True)
class StudyResult:
    """The state of a study when its run ends. output: the recommended config, None without one;
    ended_early: before its trials were spent, since no candidate was expected to improve the
    front; not_tried: choices that no trial measured, by setting; lost: why the store does not hold
    it, None if it does."""

    study: StudySnapshot
    trials: tuple[TrialSnapshot, ...]
    front: Front
    output: str | None
    ended_early: bool = False
    not_tried: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    lost: str | None = None


def run_study(
    definition: StudyDefinition,
    session: EngineSession,
    store: Store,
    hardware: Hardware,
    progress: StudyProgress,
    pool: WorkerPool = ALONE,
    estimate: Mapping[str, float] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> StudyResult:
    """Runs, or continues, a study until its trials or its time are spent, or no candidate is
    expected to improve the front.

    pool: the workers that run trials beside this process; estimate: its expected seconds by
    stage, if known; interrupted: whether a stop was requested, checked before each trial.

    definition: its tasks have been checked (tuner.study.tasks). Raises InfeasibleStudyError when
    nothing fits, StudyError when the name is taken or a cluster cannot be used. On
    KeyboardInterrupt the study is left resumable and the interrupt is raised again.
    """
    check_writable(definition.output_path)
    with study_lock(store.database.url, definition.study_name) as keep_lock:
        workload = definition.fitted_workload(session.facts).workload
        space = _space(definition, session, workload)
        study = store.begin_study(definition, session.facts, hardware, workload)
        if earlier := store.trials(study):
            space = _space(definition, session, workload, earlier)
        _correct(space, study, store, hardware, session.opened_device)
        if estimate:
            store.keep_estimate(study.id, sum(estimate.values()))
        context = StudyContext(
            definition, session, store, hardware, progress, workload, space, study, interrupted
        )
        run = StudyRun(context, keep_lock=keep_lock)
        with contextlib.ExitStack() as undo:
            undo.callback(store.set_study_state, study.id, "INTERRUPTED")
            undo.callback(store.interrupt_running, study.id, run.ends_with_us)
            undo.callback(store.database.roll_back)  # runs first
            try:
                run.expect(estimate or {})
                with progress.also_to(Kept(store, study.id)):
                    run.lead(pool)
                store.database.check_present()
                keep_lock()
            except TakenStudyError:
                undo.pop_all()  # the study is another's: its state is not ours to write
                raise
            except StoreError:
                lost = store.database.lost()
                if lost is None:
                    raise
                undo.pop_all()
                return run.known_result(str(lost))
            undo.pop_all()
        store.set_study_state(study.id, "FINISHED")
        return run.result()


def join_study(
    study: StudySnapshot,
    definition: StudyDefinition,
    session: EngineSession,
    store: Store,
    hardware: Hardware,
    progress: StudyProgress,
) -> int:
    """Runs trials of a study that another process leads, until it needs no more; returns how many
    ran here.

    Raises StudyError if the study does not run, or was begun on another kind of machine.
    """
    if study.state != "RUNNING":
        raise StudyError(
            f"study '{study.name}' does not run ({study.state}): start it with `tune --model "
            f"{study.model} --study {shlex.quote(study.name)} ...`, then let workers join"
        )
    if study.machine.get("fingerprint") != hardware.fingerprint:
        raise StudyError(
            f"study '{study.name}' was begun on another kind of machine "
            f"({study.machine.get('cpu', '?')}): speeds measured here would not compare"
        )
    workload = definition.fitted_workload(session.facts).workload
    space = _space(definition, session, workload, store.trials(study))
    _correct(space, study, store, hardware, session.opened_device)
    context = StudyContext(definition, session, store, hardware, progress, workload, space, study)
    return StudyRun(context).join()


def _space(
    definition: StudyDefinition,
    session: EngineSession,
    workload: Workload,
    earlier: Sequence[TrialSnapshot] = (),
) -> SearchSpace:
    """The space on the opened device. What the driver's context takes is what the study's earlier
    trials were planned with, if there are any: its choices must not change."""
    device = session.opened_device
    planned = [trial.config["device"] for trial in earlier if trial.config]
    contexts = [one.get("context_bytes", 0) for one in planned if one.get("name") == device]
    known = next(filter(None, contexts), session.context_bytes)
    return build_space(definition, session.facts, workload, device, known)


def _correct(
    space: SearchSpace, study: StudySnapshot, store: Store, hardware: Hardware, device: str
) -> None:
    """Lets points resolve with what is known of the model's memory on this machine. The choices
    stay those of the equation, since a study's must not change."""
    path = seen_path(hardware, space.facts, device)
    known = kept_correction(store.trials(study), path, space.base.budget.vram_bytes)
    if known is not None:
        space.correct(known)


@dataclass
class StudyRun:
    """One study, led or joined by this process. lost: workers whose node or process died;
    keep_lock: see `study_lock`."""

    context: StudyContext
    searcher: Searcher | None = None
    lost: set[str] = field(default_factory=set)
    keep_lock: Keep = lambda: None

    def __post_init__(self) -> None:
        self.state = StudyState(self.context)
        self.runner = TrialRunner(self.context, self.state, self._predict)

    def expect(self, estimate: Mapping[str, float]) -> None:
        """Tells the display how much there is to do."""
        definition = self.context.definition
        self.context.progress.expect(
            min(definition.trials, self.context.space.size),
            len(self.state.finished),
            estimate,
            definition.confirm_rounds,
            definition.timeout_s,
            likely_trials(definition, min(definition.trials, self.context.space.size)),
        )

    def lead(self, pool: WorkerPool) -> None:
        """Runs all stages as the study's leading process."""
        self._keep_deadline()
        self._interrupt(self.ends_with_us)
        if self.state.left > 0:
            if self.context.definition.sampler == "auto":
                if self.state.first_measured is None:
                    self._search(leading=True, most=1)
                self._prepare_searcher()
            for _ in range(MOST_ROUNDS):
                if self.state.left <= 0 or self._exhausted():
                    break
                with self._joined(pool):
                    self._search(leading=True)
                # a dead worker leaves its trial, which the next round retries
                if not self._interrupt(self._is_lost):
                    break
        self._write_best()
        self._confirm()
        self._write_best()

    def join(self) -> int:
        """Runs only the search, beside the leading process; returns how many trials ran here."""
        self.context.progress.expect(
            self.context.definition.trials, len(self.state.finished), planned={}
        )
        if self.context.definition.sampler == "auto":
            self._prepare_searcher()
        if self.state.unclaimed > 0:
            self._search(leading=False)
        return sum(trial.worker == own_id() for trial in self.state.trials)

    def result(self) -> StudyResult:
        """The current state of the study."""
        self.state.refresh()
        definition, front = self.context.definition, self.state.front
        study = self.context.store.study(self.context.study.name)
        output = str(definition.output_path) if front.members else None
        early = self.state.left > 0 and self._exhausted()
        not_tried = self.context.space.not_tried(
            [trial.params for trial in self.state.trials if trial.state in MEASURED_STATES]
        )
        return StudyResult(study, self.state.trials, front, output, early, not_tried)

    def known_result(self, lost: str) -> StudyResult:
        """What this process knows of the study, without a store to read it from."""
        study, front = self.context.study, self.state.front
        output = str(self.context.definition.output_path) if front.members else None
        return StudyResult(study, self.state.trials, front, output, lost=lost)

    def ends_with_us(self, worker: str | None) -> bool:
        """Whether that worker's trials stop when this process leaves the study."""
        return worker == own_id() or self._is_lost(worker)

    def _is_lost(self, worker: str | None) -> bool:
        return worker in self.lost or is_gone(worker)

    def _interrupt(self, ended: Callable[[str | None], bool]) -> int:
        """Marks running trials of ended workers as interrupted; returns how many there were."""
        lost = self.context.store.interrupt_running(self.context.study.id, ended)
        self.state.refresh()
        return len(lost)

    def _keep_deadline(self) -> None:
        """Stores the deadline before any slow stage, so that no joining worker uses the deadline of
        an earlier run."""
        context = self.context
        database = context.store.database
        with (
            explained(database.url),
            open_storage(database, context.store, context.study) as storage,
        ):
            memory = open_memory(storage, None, context.definition)
            keep_deadline(memory, context.seconds_left(1 - CONFIRMING_FRACTION))

    def _prepare_searcher(self) -> None:
        """Prepares trace, replay and posterior; the first measured trial corrects the replay."""
        self.searcher = Preparation(self.context, self.state.first_measured).searcher()
        self.state.refresh()

    def _predict(self, point: Point) -> Mapping[str, float]:
        if self.searcher is None:
            return {}
        return self.searcher.predict(point, self.state.trials)

    def _exhausted(self) -> bool:
        return self.searcher is not None and self.searcher.exhausted(self.state.trials)

    def _joined(self, pool: WorkerPool) -> contextlib.AbstractContextManager[None]:
        """Starts the other workers while the block runs."""
        definition, name = self.context.definition, self.context.study.name
        url, trust = self.context.store.database.url, definition.trust_remote_code
        asked, opened = definition.device, self.context.session.opened_device
        if pool.ray is not None:
            return placed_workers(name, url, pool.ray, (asked, opened), trust, self.lost.add)
        devices = devices_for(asked, opened, self.context.hardware, pool.workers)
        if len(devices) < pool.workers:
            self.context.progress.note(
                f"{len(devices)} of {pool.workers} workers run: there is one for each accelerator "
                f"that {asked} names"
            )
        return joined_workers(name, url, devices[1:], trust)

    def _search(self, *, leading: bool, most: int | None = None) -> None:
        """Runs trials until there are enough. most: limit on their number."""
        loop = TrialLoop(self.context, self.state, self.runner, self.searcher, self._after_trial)
        started_s = time.monotonic()
        try:
            timeout_s = self.context.seconds_left(1 - CONFIRMING_FRACTION)
            loop.run(leading=leading, most=most, timeout_s=timeout_s)
        finally:
            if leading:
                self.context.add_spent("search", time.monotonic() - started_s)

    def _confirm(self) -> None:
        rounds = self.context.definition.confirm_rounds
        if not rounds:
            return
        started_s = time.monotonic()
        Confirmation(self.context, self.state, self.runner).run(rounds)
        self.context.add_spent("confirm", time.monotonic() - started_s)

    def _after_trial(self, trial: TrialSnapshot | None) -> None:
        if self.context.study.parent_pid == os.getpid():
            self.context.store.database.check_present()
            self.keep_lock()
            self._write_best()
        if trial is not None:
            done = len(self.state.finished)
            self.context.progress.trial_done(trial, self.state.front, done)

    def _write_best(self) -> None:
        """Writes the recommended config, and one for each smaller budget of a curve."""
        front, definition = self.state.front, self.context.definition
        if not front.members:
            return
        study = self.context.store.study(self.context.study.name)
        write_atomically(definition.output_path, render(study, front, front.knee))
        for point in self.state.curve[:-1]:
            if point.front.members:
                path = definition.curve_path(point.budget_bytes)
                write_atomically(path, render(study, point.front, point.front.knee))
