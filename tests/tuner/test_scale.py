"""A store of 100,000 trials answers at once: `pytest -m slow tests/tuner/test_scale.py -s`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.crowd import crowd
from tests.tuner.conftest import Tune
from tuner.folders import default_storage

STUDIES, TRIALS = 50, 2000
LIMIT_S = 2.0


@pytest.fixture
def crowded(tune: Tune, study: Path) -> Path:
    """The finished study beside 49 copies of it with 2000 trials each."""
    crowd(default_storage(), studies=STUDIES - 1, trials=TRIALS)
    return study


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_trials_are_listed_and_shown_at_once(crowded: Path):
    listed, seconds = _timed("studies", "--json")
    assert len(listed["studies"]) == STUDIES
    assert sum(one["trials"] for one in listed["studies"]) > 0.97 * STUDIES * TRIALS
    print(f"tune studies: {seconds:.2f} s")
    assert seconds < LIMIT_S
    shown, seconds = _timed("show", "copy-7", "--json")
    assert len(shown["trials"]) == TRIALS
    print(f"tune show of {TRIALS} trials: {seconds:.2f} s")
    assert seconds < LIMIT_S


def _timed(*arguments: str) -> tuple[dict, float]:
    """The document of a command, and its seconds beside what any command takes to start; the best
    of two each, since others use the machine too."""
    bare = min(_run("--help")[1] for _ in range(2))
    runs = [_run(*arguments) for _ in range(2)]
    return json.loads(runs[0][0]), min(seconds for _, seconds in runs) - bare


def _run(*arguments: str) -> tuple[str, float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments],
        capture_output=True, text=True, check=True, env=os.environ.copy(),
    )  # fmt: skip
    return done.stdout, time.monotonic() - started
