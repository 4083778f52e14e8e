"""Optuna's part of a study: its storage in the same database, its queue, its heartbeats.

Our tables are the record. Optuna stores its samplers' history, distributes trials over several
workers, and fails those whose worker's heartbeat stopped; such a trial is retried once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages._rdb.models import BaseModel as OptunaTables
from optuna.trial import TrialState as OptunaState

from tuner.definition.objectives import OBJECTIVES
from tuner.definition.study import StudyDefinition
from tuner.processes.identity import is_gone
from tuner.store import database
from tuner.store.database import Database
from tuner.store.repository import Store
from tuner.store.snapshots import FINISHED_STATES, RETRY, SEARCH, StudySnapshot, TrialSnapshot

log = logging.getLogger(__name__)

HEARTBEAT_S, GRACE_S = 20, 90
MOST_RETRIES = 1
ORIGIN, DEADLINE = "origin", "no_trial_after"


@contextlib.contextmanager
def open_storage(opened: Database, store: Store, study: StudySnapshot) -> Iterator[Any]:
    """Opens Optuna's storage in our database; its connections are closed at the end of the
    block."""

    def stale(memory: Any, trial: Any) -> None:
        store.interrupt_trial(study.id, trial.number, "its worker stopped answering")
        retry(memory, trial)

    url = opened.engine.url
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_the_database_says())
        with _quietly():
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES)
            storage = optuna.storages.RDBStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs=_engine_arguments(url.drivername),
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=stale,
            )
        stack.callback(storage.engine.dispose)
        stack.callback(storage.remove_session)
        stack.callback(database.rolling_back(storage.engine))
        _complete(storage.engine)
        yield storage


@contextlib.contextmanager
def _as_the_database_says() -> Iterator[None]:
    """Errors of a commit as the database says them, a full disk for one, so that `explained` knows
    them."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


def _complete(engine: Any) -> None:
    """Makes the indexes that a full disk or a kill kept Optuna from making: it makes a table's with
    the table only, and without that of names it would begin a study twice."""
    for table in OptunaTables.metadata.sorted_tables:
        for index in table.indexes:
            index.create(engine, checkfirst=True)


def open_memory(storage: Any, sampler: Any, definition: StudyDefinition) -> Any:
    """Opens the Optuna study, creating it if it does not exist."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _quietly():
        return optuna.create_study(
            storage=storage,
            sampler=sampler,
            study_name=definition.study_name,
            directions=[OBJECTIVES[name].direction for name in definition.objectives],
            load_if_exists=True,
        )


@contextlib.contextmanager
def beating(storage: Any, trial: Any) -> Iterator[None]:
    """Records the heartbeat of a trial during the block; one that a locked or full database refuses
    is missed."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            try:
                storage.record_heartbeat(trial._trial_id)
            except optuna.exceptions.StorageInternalError as error:
                text = "a heartbeat of trial %d was not stored: %s"
                log.info(text, trial.number, error.__cause__)
            if ended.wait(HEARTBEAT_S):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def fail_lost(memory: Any, trials: Sequence[TrialSnapshot]) -> None:
    """Fails trials that Optuna lists as running although our store has them interrupted, or ended
    by a process that is gone.

    Others are left to heartbeats: a trial unknown to our store may be about to begin elsewhere, and
    one that just ended there will be reported soon.
    """
    ended = {
        trial.number
        for trial in trials
        if trial.state == "INTERRUPTED" or (trial.state != "RUNNING" and is_gone(trial.worker))
    }
    for trial in memory.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
        if trial.number in ended:
            memory.tell(trial.number, state=OptunaState.FAIL, skip_if_finished=True)


def ask(memory: Any) -> Any:
    """The next trial, to be run under `beating`, after trials whose worker's heartbeat stopped were
    failed and queued again."""
    with _quietly():
        optuna.storages.fail_stale_trials(memory)
        # Optuna records heartbeats in Study.optimize only
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        return memory.ask()


def enqueue(
    memory: Any, trials: Sequence[TrialSnapshot], first: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Queues points that were neither run nor queued: `first` (origin and point), then interrupted
    ones, each once more."""
    known = [dict(trial.params) for trial in trials if trial.state in FINISHED_STATES]
    waiting = memory.get_trials(deepcopy=False, states=(OptunaState.WAITING,))
    known += [dict(trial.system_attrs.get("fixed_params", {})) for trial in waiting]
    lost = [dict(trial.params) for trial in trials if trial.state == "INTERRUPTED"]
    again = [(RETRY, point) for point in lost if lost.count(point) <= MOST_RETRIES]
    for origin, point in [*first, *again]:
        if dict(point) not in known:
            memory.enqueue_trial(dict(point), user_attrs={ORIGIN: origin})
            known.append(dict(point))


def keep_deadline(memory: Any, timeout_s: float | None) -> None:
    """Stores the deadline after which no worker starts a trial; None: no deadline."""
    memory.set_user_attr(DEADLINE, None if timeout_s is None else time.time() + timeout_s)


def seconds_left(memory: Any) -> float | None:
    """Seconds until the leading process's deadline, by this machine's clock; None without one."""
    until = memory.user_attrs.get(DEADLINE)
    return None if until is None else max(0.0, until - time.time())


def origin_of(trial: Any) -> str:
    """The reason why Optuna runs this trial."""
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    if "retry_history" in frozen.system_attrs:
        return RETRY
    return str(frozen.user_attrs.get(ORIGIN, SEARCH))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _engine_arguments(driver: str) -> dict[str, Any]:
    return (
        {"connect_args": {"timeout": database.BUSY_TIMEOUT_S}}
        if driver.startswith("sqlite")
        else {"pool_pre_ping": True}  # a server that was restarted costs nothing
    )
