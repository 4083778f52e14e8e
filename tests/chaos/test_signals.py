"""SIGKILL and SIGTERM at random moments: of a study, of packing, of a service, of a server.

Two joined workers of one study under fifty kills: tests/tuner/study/test_chaos.py.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import sqlalchemy as sa

from tests.chaos.leftovers import Held, check_nothing_left, check_undamaged, check_whole
from tests.tuner.conftest import Tune
from tests.tuner.deployment.test_serve_real import deployed, file, home
from tests.tuner.service.made import until
from tests.tuner.service.test_real import REQUEST, running
from tuner.store import database
from tuner.store.snapshots import FINISHED_STATES

__all__ = ["file", "home"]  # a deployment of the tiny model with measured figures
SOURCE = str(Path(__file__).resolve().parents[2])
TRIALS = 6
STUDY = ("--definition", "study.yaml", "--trials", str(TRIALS), "--sampler", "random")


def start(folder: Path, *words: str, **fake: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "EXPERTUNE_FAKE": json.dumps(fake)}
    with (folder / "command.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def check_all_ended(family: list[psutil.Process]) -> None:
    """Children end with their parent."""
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def survive_study(tune: Tune, folder: Path, number: int, moments: list[float]) -> None:
    """A signal to the parent of a study after each of so many seconds, then to its end."""
    store = folder / "data" / "expertune" / "expertune.db"
    before = Held.now()
    for moment in moments:
        parent = start(folder, *STUDY, slow_s=0.05)
        time.sleep(moment)
        family = family_of(parent)
        parent.send_signal(number)
        code = parent.wait(timeout=60)
        assert code in (0, 130, -number, -signal.SIGINT), (folder / "command.log").read_text()[
            -2000:
        ]
        check_all_ended(family)
        check_undamaged(store)
    assert "Traceback" not in (folder / "command.log").read_text()
    done = tune(*STUDY, "--json")
    assert done.code == 0, done.err
    states = Counter(one["state"] for one in done.document["trials"])
    assert sum(states[state] for state in FINISHED_STATES) == TRIALS, states
    check_whole(store)
    check_nothing_left(before, folder / "data", folder / "cache")


def test_a_study_that_is_ended_and_killed_once_goes_on(tune: Tune, folder: Path):
    survive_study(tune, folder, signal.SIGTERM, [2.5])
    survive_study(tune, folder, signal.SIGKILL, [0.4])


@pytest.mark.parametrize("at", [20, 41])
def test_an_interrupt_behind_the_begin_of_a_transaction_locks_nobody_out(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    begin, begun = database._begin_sqlite, [0]

    def interrupted(connection: sa.Connection) -> None:
        begin(connection)
        begun[0] += threading.current_thread() is threading.main_thread()  # an interrupt goes there
        if begun[0] == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(database, "BUSY_TIMEOUT_S", 0.5)
        patched.setattr(database, "_begin_sqlite", interrupted)
        done = tune(*STUDY)
    assert done.code == 130, done.err
    check_whole(folder / "data" / "expertune" / "expertune.db")
    assert tune(*STUDY).code == 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_study_that_is_ended_at_random_moments_goes_on(tune: Tune, folder: Path, number: int):
    rng = random.Random(number)
    survive_study(tune, folder, number, [rng.uniform(0.2, 5.0) for _ in range(20)])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_packing_that_is_killed_at_random_moments_goes_on(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EXPERTUNE_ENGINE")
    rng, before = random.Random(3), Held.now()
    words = ("pack", "--model", str(tiny_folder), "--bits", "8,4", "--device", "cpu")
    packs = folder / "cache" / "expertune" / "packs"
    seen: Counter[str] = Counter()
    for _ in range(20):
        packing = start(folder, *words)
        while packing.poll() is None and not any(packs.rglob("*.partial")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        seen["while packing" if any(packs.rglob("*.partial")) else "after"] += 1
        family = family_of(packing) if packing.poll() is None else []
        packing.kill()
        packing.wait()
        check_all_ended(family)
        if not any(packs.rglob("*.partial")):
            for path in packs.rglob("*"):  # begin anew, so that the next one packs
                path.unlink() if path.is_file() else None
    print(dict(seen))
    last = start(folder, *words)
    assert last.wait(timeout=120) == 0, (folder / "command.log").read_text()[-2000:]
    assert len(list(packs.rglob("manifest*"))) == 2
    check_nothing_left(before, folder / "cache")


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_service_that_is_killed_over_and_over_ends_its_study(folder: Path):
    rng, before = random.Random(5), Held.now()
    with running(folder, slow_s=0.1) as service:
        sent = {**REQUEST, "sampler": "random", "trials": 12}
        assert service.client.post("/v1/studies", json=sent).status_code == 202
        time.sleep(rng.uniform(0.5, 3.0))
        service.end(signal.SIGKILL)
    for number in (*[signal.SIGKILL] * 8, signal.SIGTERM, signal.SIGTERM):
        with running(folder, slow_s=0.1) as service:
            time.sleep(rng.uniform(0.1, 3.0))
            service.end(number)
    with running(folder) as service:
        until(lambda: service.job() == "DONE", 60)
        assert len(service.ended()) == 12
        service.end(signal.SIGTERM)
    check_whole(folder / "data" / "expertune" / "expertune.db")
    check_nothing_left(before, folder / "data", folder / "cache")


def kill_command(command: psutil.Process) -> None:
    command.kill()


def kill_server(command: psutil.Process) -> None:
    command.children()[0].kill()


def end_command(command: psutil.Process) -> None:
    command.send_signal(signal.SIGTERM)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strike", [kill_command, kill_server, end_command])
def test_a_server_that_ends_at_random_moments_serves_again(
    home: Path, file: Path, strike: Callable[[psutil.Process], None]
):
    rng, before = random.Random(6), Held.now()
    ask = {"model": "tiny", "prompt": "The engine", "max_tokens": 64, "stream": True}
    for _ in range(4):
        with deployed(file, "--port", "0") as (process, said):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
            with (
                httpx.Client(timeout=30) as client,
                client.stream("POST", f"{said['url']}/completions", json=ask) as answer,
            ):
                assert answer.status_code == 200
                time.sleep(rng.uniform(0, 0.3))
                strike(psutil.Process(process.pid))
                try:
                    answer.read()
                except httpx.TransportError:
                    assert strike is not end_command, "what runs is finished before it stops"
            process.communicate(timeout=60)
            check_all_ended(family)
    check_nothing_left(before, home / "data", home / "cache")
    store = home / "data" / "expertune" / "expertune.db"
    if store.exists():
        check_whole(store)
