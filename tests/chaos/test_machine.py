"""A machine that makes trouble for a whole study: a lock, a clock that jumps, too little memory."""

import contextlib
import os
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.chaos.leftovers import Held, check_nothing_left, check_undamaged, check_whole
from tests.tuner.conftest import Tune
from tests.tuner.study.test_faults import strikes_at
from tuner.store import repository
from tuner.store.snapshots import FINISHED_STATES

TRIALS = 6
STUDY = ("--definition", "study.yaml", "--trials", str(TRIALS), "--sampler", "random")
# Of a memory cgroup: the folder above it and its limit, in version 1 and in version 2.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
SOURCE = str(Path(__file__).resolve().parents[2])
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def check_continued(tune: Tune, store: Path, *words: str) -> None:
    done = tune(*(words or STUDY), "--json")
    assert done.code == 0, done.err
    states = Counter(one["state"] for one in done.document["trials"])
    assert sum(states[state] for state in FINISHED_STATES) == TRIALS, states
    check_whole(store)


@pytest.fixture
def store(folder: Path) -> Path:
    return folder / "data" / "expertune" / "expertune.db"


@pytest.mark.parametrize("lock_s", [20, 60])
def test_a_database_that_another_program_locks_for_a_minute_loses_nothing(
    tune: Tune, store: Path, monkeypatch: pytest.MonkeyPatch, lock_s: int
):
    before = Held.now()
    release = threading.Event()

    def hold() -> None:
        other = sqlite3.connect(store, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        locked.set()
        release.wait(lock_s)
        other.close()

    locked = threading.Event()
    holder = threading.Thread(target=hold)

    def strike() -> None:
        holder.start()
        locked.wait()

    with monkeypatch.context() as patched:
        strikes_at(patched, 3, strike)
        done = tune(*STUDY)
    assert (done.code, "is locked" in done.err) == ((1, True) if lock_s > 30 else (0, False))
    holder.join()
    check_undamaged(store)
    check_continued(tune, store)
    check_nothing_left(before, store.parent)


@pytest.mark.parametrize("seed", range(10))
def test_a_clock_that_jumps_loses_nothing(
    tune: Tune, store: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    rng, wall = random.Random(seed), time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: wall() + rng.uniform(-1e6, 1e6))
        patched.setattr(
            repository,
            "now",
            lambda: datetime.now(UTC) + timedelta(seconds=rng.uniform(-1e6, 1e6)),
        )
        done = tune(*STUDY, "--timeout", "1h")
    assert done.code == 0, done.err
    check_continued(tune, store)


@dataclass(frozen=True)
class Cgroup:
    """A group of processes that share a limit of memory."""

    folder: Path
    limit: Path

    @classmethod
    def make(cls) -> "Cgroup | None":
        """Of the version that this machine has; None if none can be made."""
        for above, limit in CGROUPS:
            folder = above / f"expertune-chaos-{os.getpid()}"
            with contextlib.suppress(OSError):
                folder.mkdir()
                if (folder / limit).exists():
                    return cls(folder, folder / limit)
                folder.rmdir()  # memory is limited elsewhere
        return None


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    made = Cgroup.make()
    if made is None:
        pytest.skip("no memory cgroup can be made here: run as root, with a writable cgroup tree")
    yield made
    for _ in range(50):
        with contextlib.suppress(OSError):
            made.folder.rmdir()
        if not made.folder.exists():
            break
        time.sleep(0.1)


@pytest.mark.parametrize("limit_bytes", [250_000_000, 550_000_000])
def test_too_little_memory_for_the_engine_loses_nothing(
    tune: Tune,
    store: Path,
    tiny_folder: Path,
    cgroup: Cgroup,
    monkeypatch: pytest.MonkeyPatch,
    limit_bytes: int,
):
    monkeypatch.delenv("EXPERTUNE_ENGINE")
    cgroup.limit.write_text(str(limit_bytes))
    before = Held.now()
    words = (
        "--model", str(tiny_folder), "--device", "cpu", "--vram", "100MB",
        "--objectives", "output_tps,tpot_ms", "--sampler", "random", "--trials", str(TRIALS),
        "--workload", "workload.yaml", "--output", "tight.yaml",
    )  # fmt: skip
    command = shlex.join([sys.executable, "-m", "tuner", *words, "--study", "tight"])
    joined = f"echo $$ > {cgroup.folder}/cgroup.procs; exec {command}"
    done = subprocess.run(
        ["sh", "-c", joined],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("tune: ")]
    print(limit_bytes, done.returncode, *said[-1:])
    assert done.returncode in (0, 1, 3, -signal.SIGKILL)
    assert "Traceback" not in done.stderr
    check_undamaged(store)
    # the study was begun on a machine with less memory: what follows is another one
    check_continued(tune, store, *words, "--study", "roomy")
    check_nothing_left(before, store.parent)
