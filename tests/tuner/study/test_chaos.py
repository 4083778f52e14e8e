"""SIGKILL at random moments, over and over: the store stays consistent and the study ends.

Fifty kills, as long as a coffee: `pytest -m chaos tests/tuner/study/test_chaos.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.tuner.conftest import Tune
from tuner.store.snapshots import FINISHED_STATES

KILLS, TRIALS = 50, 150


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_fifty_kills_lose_and_double_no_trial(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPERTUNE_FAKE", json.dumps({"slow_s": 0.05}))
    rng = random.Random(4)
    arguments = ["--definition", "study.yaml", "--trials", str(TRIALS), "--sampler", "random"]
    command = [sys.executable, "-m", "tuner", *arguments, "--workers", "2"]
    killed: Counter[str] = Counter()
    parent = _start(command)
    finished: dict[int, tuple[str, str]] = {}
    try:
        while killed.total() < KILLS:
            time.sleep(rng.uniform(0.3, 3.0))
            if parent.poll() is not None:
                assert parent.returncode in (0, -signal.SIGKILL), _last_words()
                assert parent.returncode, (
                    f"it ended after {killed.total()} kills: give it more trials"
                )
                _check_kept(tune, finished)
                parent = _start(command)
                continue
            kind, victim = _choose(parent.pid, rng)
            os.kill(victim, signal.SIGKILL)
            killed[kind] += 1
        parent = _ended(parent, command)
    finally:
        parent.kill()
        parent.wait()
    _check_kept(tune, finished)
    shown = tune("show", "small", "--json").document
    states = Counter(trial["state"] for trial in shown["trials"])
    numbers = [trial["number"] for trial in shown["trials"]]
    print(dict(killed), dict(states))
    assert len(set(numbers)) == len(numbers)
    assert states["RUNNING"] == 0
    assert states["FAILED"] <= killed["engine"]  # a kill costs the trial that it hits
    assert TRIALS <= sum(states[state] for state in FINISHED_STATES) <= TRIALS + 2
    assert shown["study"]["state"] == "FINISHED"
    assert shown["front"]


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    with Path("parent.log").open("ab") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)


def _ended(parent: subprocess.Popen[bytes], command: list[str]) -> subprocess.Popen[bytes]:
    """Let it end, starting it again where it was the last one killed."""
    for _ in range(3):
        if parent.wait(timeout=600) == 0:
            return parent
        parent = _start(command)
    raise AssertionError(f"the study ended with {parent.returncode}: {_last_words()}")


def _last_words() -> str:
    return Path("parent.log").read_text(encoding="utf-8", errors="replace")[-2000:]


def _choose(parent: int, rng: random.Random) -> tuple[str, int]:
    """The parent, a joined worker or an engine, whichever there are."""
    found = [("parent", parent)]
    try:
        for child in psutil.Process(parent).children(recursive=True):
            kind = "worker" if "tuner worker" in " ".join(child.cmdline()) else "engine"
            found.append((kind, child.pid))
    except psutil.NoSuchProcess:
        return found[0]
    return rng.choice(found)


def _check_kept(tune: Tune, finished: dict[int, tuple[str, str]]) -> None:
    """What was finished before stays as it was."""
    done = tune("show", "small", "--json")
    if done.code != 0:  # killed before the study began
        return
    for trial in done.document["trials"]:
        if trial["state"] in FINISHED_STATES:
            seen = trial["state"], trial["finished"]
            assert finished.setdefault(trial["number"], seen) == seen
