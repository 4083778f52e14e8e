"""The disk is full at the n-th write of a study, for every n: the next start goes on, nothing lost.

A run takes a second, so `make test` tries three of the writes; `make chaos` tries all.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.chaos.leftovers import Held, check_nothing_left, check_undamaged, check_whole
from tests.fakes.full_disk import FullDisk
from tests.tuner.conftest import Tune
from tuner.store.snapshots import FINISHED_STATES

TRIALS = 3
STUDY = ("--definition", "study.yaml", "--trials", str(TRIALS), "--sampler", "random")


def writes_of_a_study(tune: Tune, monkeypatch: pytest.MonkeyPatch, name: str) -> int:
    with monkeypatch.context() as patched:
        disk = FullDisk(patched)
        done = tune(*STUDY, "--study", name)
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
    file = folder / "data" / "expertune" / "expertune.db"
    before, tried = Held.now(), 0
    for n in ns:
        words = (*STUDY, "--study", f"at-{n}", "--output", f"at-{n}.yaml")
        with monkeypatch.context() as patched:
            FullDisk(patched, n, lasting)
            done = tune(*words)
        assert done.code in (0, 1), (n, done.err)
        assert "Traceback" not in done.err, (n, done.err)
        assert "unexpected" not in done.err, (n, done.err)
        if done.code == 1:
            assert "full" in done.err or "No space" in done.err, (n, done.err)
        check_undamaged(file)
        again = tune(*words, "--json")
        assert again.code == 0, (n, again.err)
        states = Counter(trial["state"] for trial in again.document["trials"])
        assert sum(states[state] for state in FINISHED_STATES) == TRIALS, (n, states)
        check_whole(file)
        check_nothing_left(before, folder)
        tried += 1
        print(n, end=" ", flush=True)
    return tried


def test_a_full_disk_at_a_few_writes_loses_nothing(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    count = writes_of_a_study(tune, monkeypatch, "whole")
    survive(tune, folder, monkeypatch, range(1, count, count // 2 + 1))
    survive(tune, folder, monkeypatch, [count // 2], lasting=False)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("lasting", "step"), [(True, 1), (False, 3)])
def test_a_full_disk_at_every_write_loses_nothing(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool, step: int
):
    count = writes_of_a_study(tune, monkeypatch, "whole")
    print(survive(tune, folder, monkeypatch, range(1, count + 1, step), lasting), "writes")
