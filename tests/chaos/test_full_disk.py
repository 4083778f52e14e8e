"""The disk is full at the n-th write of a study, for every n: the next start goes on, nothing lost.

Every run has data and cache folders of its own, so that the writes that make a store are among
them. A run takes a second, so `make test` tries three of the writes; `make chaos` tries all, in
parts that can be run one by one.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from optuna.storages._rdb import storage as optuna_storage

from tests.chaos.leftovers import Held, check_nothing_left, check_undamaged, check_whole
from tests.fakes.full_disk import FullDisk
from tests.tuner.conftest import Tune
from tuner.store.snapshots import FINISHED_STATES

TRIALS = 2
PARTS = 8
SMALL_SPACE = "engine: {prefetch.depth: 0, batch.count: 1}\nconfirm_rounds: 1\n"
STUDY = ("--definition", "study.yaml", "--trials", str(TRIALS), "--sampler", "random")


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose study has few points; Optuna does not wait before it tries again."""
    with (folder / "study.yaml").open("a") as definition:
        definition.write(SMALL_SPACE)
    monkeypatch.setattr(optuna_storage.random, "random", lambda: 0.0)
    return folder


def anew(folder: Path, patched: pytest.MonkeyPatch, name: str) -> Path:
    """Data and cache folders that hold nothing; the folder of both."""
    patched.setenv("XDG_DATA_HOME", str(folder / name / "data"))
    patched.setenv("XDG_CACHE_HOME", str(folder / name / "cache"))
    return folder / name


def writes_of_a_study(tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patched:
        anew(folder, patched, "whole")
        disk = FullDisk(patched)
        done = tune(*STUDY, "--output", "whole.yaml")
    assert done.code == 0, done.err
    return disk.writes


def survive(
    tune: Tune,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    ns: Iterable[int],
    lasting: bool = True,
) -> int:
    """Full at each of these writes, or from there on, then free. Returns how often it was tried."""
    before, tried = Held.now(), 0
    for n in ns:
        words = (*STUDY, "--output", f"at-{n}.yaml")
        with monkeypatch.context() as patched:
            home = anew(folder, patched, f"at-{n}")
            with monkeypatch.context() as full:
                FullDisk(full, n, lasting)
                done = tune(*words)
            assert done.code in (0, 1), (n, done.err)
            assert "Traceback" not in done.err, (n, done.err)
            assert "unexpected" not in done.err, (n, done.err)
            if done.code == 1:
                assert "full" in done.err or "No space" in done.err, (n, done.err)
            file = home / "data" / "expertune" / "expertune.db"
            check_undamaged(file)
            again = tune(*words, "--json")
        assert again.code == 0, (n, again.err)
        states = Counter(trial["state"] for trial in again.document["trials"])
        assert sum(states[state] for state in FINISHED_STATES) == TRIALS, (n, states)
        check_whole(file)
        check_nothing_left(before, home)
        shutil.rmtree(home)
        tried += 1
        print(n, end=" ", flush=True)
    return tried


def test_a_full_disk_at_a_few_writes_loses_nothing(
    tune: Tune, small: Path, monkeypatch: pytest.MonkeyPatch
):
    count = writes_of_a_study(tune, small, monkeypatch)
    survive(tune, small, monkeypatch, range(1, count, count // 2 + 1))
    survive(tune, small, monkeypatch, [count // 2], lasting=False)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("lasting", [True, False])
def test_a_full_disk_at_every_write_loses_nothing(
    tune: Tune, small: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool, part: int
):
    count = writes_of_a_study(tune, small, monkeypatch)
    writes = range(1 + part, count + 1, PARTS)
    print(survive(tune, small, monkeypatch, writes, lasting), "of", count, "writes")
