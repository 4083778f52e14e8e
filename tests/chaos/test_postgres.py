"""A PostgreSQL server that drops connections, restarts or crashes during a study; two writers."""

import contextlib
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from engine.config.settings import EngineConfig
from engine.memory.plan import resolve
from tests.chaos.leftovers import Held, check_nothing_left, check_whole
from tests.fakes.fake_engine import facts_of
from tests.fakes.postgres import Server, server
from tests.tuner.conftest import Tune
from tests.tuner.store.test_repository import begin, report_of
from tests.tuner.study.test_faults import strikes_at
from tuner.errors import StudyError, TakenStudyError
from tuner.store import lock
from tuner.store.database import open_database
from tuner.store.integrity.check import check_store
from tuner.store.lock import study_lock
from tuner.store.repository import Store
from tuner.store.snapshots import FINISHED_STATES
from tuner.store.url import parse_url

TRIALS = 6
STUDY = ("--definition", "study.yaml", "--trials", str(TRIALS), "--sampler", "random")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server() as found:
        yield found


def drop_connections(running: Server) -> None:
    """Every connection but the one that asks for it."""
    engine = sa.create_engine(
        running.url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool
    )
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )


def restart(running: Server) -> None:
    running.stop()
    running.start()


def crash(running: Server) -> None:
    running.stop(signal.SIGQUIT)
    running.start()


FAULTS: dict[str, Callable[[Server], None]] = {
    "dropped": drop_connections,
    "restarted": restart,
    "crashed": crash,
    "down": lambda running: running.stop(),
}


def survive(
    tune: Tune, running: Server, monkeypatch: pytest.MonkeyPatch, fault: str, trial: int
) -> None:
    before = Held.now()
    name = f"{fault}-{trial}-{uuid.uuid4().hex[:4]}"
    words = (*STUDY, "--storage", running.url, "--study", name)
    with monkeypatch.context() as patched:
        strikes_at(patched, trial, lambda: FAULTS[fault](running))
        done = tune(*words)
    if fault == "down":
        assert done.code == 1
        running.start()
    assert done.code in (0, 1)
    assert "Traceback" not in done.err, done.err
    assert len(done.err.splitlines()[-1]) < 400
    assert check_store(running.url).damage == ()
    again = tune(*words, "--json")
    assert again.code == 0, again.err
    states = Counter(one["state"] for one in again.document["trials"])
    assert sum(states[state] for state in FINISHED_STATES) == TRIALS, states
    check_whole(running.url)
    check_nothing_left(before)


def test_a_restarted_server_costs_at_most_the_running_trial(
    tune: Tune, folder: Path, running: Server, monkeypatch: pytest.MonkeyPatch
):
    survive(tune, running, monkeypatch, "restarted", 3)


@pytest.mark.chaos
@pytest.mark.parametrize("trial", range(1, TRIALS + 1))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_costs_at_most_the_running_trial(
    tune: Tune,
    folder: Path,
    running: Server,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    trial: int,
):
    survive(tune, running, monkeypatch, fault, trial)


@pytest.mark.parametrize("fault", ["dropped", "restarted"])
def test_a_lock_that_went_with_its_connection_is_taken_again(running: Server, fault: str):
    with study_lock(running.url, "kept") as keep:
        FAULTS[fault](running)
        keep()
        with pytest.raises(StudyError, match="already running"), study_lock(running.url, "kept"):
            pass
    with study_lock(running.url, "kept") as keep:
        keep()


def test_a_lock_that_another_process_took_meanwhile_is_not_taken_back(
    running: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "RETAKE_S", 0.2)
    with study_lock(running.url, "taken") as keep:
        drop_connections(running)
        with study_lock(running.url, "taken"), pytest.raises(TakenStudyError, match="taken over"):
            keep()


def test_a_lock_that_the_server_still_holds_for_a_broken_connection_is_taken_again(
    running: Server,
):
    class Broken:
        def scalar(self, _: Any) -> None:
            raise sa.exc.OperationalError("SELECT 1", None, Exception("the network is away"))

        def close(self) -> None:
            pass

    held = lock._AdvisoryLock(parse_url(running.url), "broken")
    assert held.take()
    unreachable, held._connection = held._connection, Broken()  # type: ignore[assignment]
    assert held.is_kept()
    with pytest.raises(sa.exc.OperationalError):
        unreachable.scalar(sa.text("SELECT 1"))
    held.close()
    unreachable.close()


@pytest.mark.parametrize("fault", ["dropped", "restarted"])
def test_no_second_parent_leads_a_study_whose_server_was_away(
    tune: Tune, folder: Path, running: Server, monkeypatch: pytest.MonkeyPatch, fault: str
):
    name, refused = f"alone-{fault}", []

    def lead_too() -> None:
        with pytest.raises(StudyError) as found, study_lock(running.url, name):
            pass
        refused.append(str(found.value))

    strikes_at(monkeypatch, 4, lead_too)
    strikes_at(monkeypatch, 2, lambda: FAULTS[fault](running))
    done = tune(*STUDY, "--storage", running.url, "--study", name)
    assert done.code == 0, done.err
    assert len(refused) == 1


def test_a_study_that_was_taken_over_ends_and_leaves_its_state(
    tune: Tune, folder: Path, running: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "RETAKE_S", 0.2)
    with contextlib.ExitStack() as other:

        def take_over() -> None:
            drop_connections(running)
            other.enter_context(study_lock(running.url, "lost"))

        strikes_at(monkeypatch, 2, take_over)
        done = tune(*STUDY, "--storage", running.url, "--study", "lost")
    assert done.code == 1
    assert "was taken over by another process" in done.err
    shown = tune("show", "lost", "--storage", running.url, "--json").document
    assert shown["study"]["state"] == "RUNNING"  # as the other process wrote it
    assert len([one for one in shown["trials"] if one["state"] in FINISHED_STATES]) >= 2


def test_two_workers_that_measure_the_same_number_their_repeats_apart(
    folder: Path, running: Server
):
    store = Store(open_database(running.url))
    study = begin(store, name="race")
    config, plan = resolve(EngineConfig(), facts_of("m"))
    key = store.keep_configuration(study.model_id, study.workload_hash, config, plan)
    together = threading.Barrier(4)

    def add(_: Any = None) -> None:
        together.wait()
        for value in range(10):
            store.add_samples(key, study.machine_id, None, report_of(float(value + 1)))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.pool(key, study.machine_id).values["output_tps"]) == 40
    store.database.close()
    assert not [one for one in check_store(running.url).findings if "twice" in one.check]
