"""A store of 100,000 trials answers at once: `pytest -m slow tests/tuner/test_scale.py -s`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.tuner.conftest import Tune
from tuner.folders import default_storage
from tuner.store.database import open_database
from tuner.store.tables import ConfigurationRow, SampleRow, SentinelRow, StudyRow, TrialRow

STUDIES, TRIALS, REPEATS = 50, 2000, 3
METRICS = ("output_tps", "tpot_ms", "ttft_ms", "expert_hit_rate")
LIMIT_S = 2.0


@pytest.fixture
def crowded(tune: Tune, study: Path) -> Path:
    """The finished study beside 49 copies of it with 2000 trials each."""
    database = open_database(default_storage())
    with database.engine.begin() as connection:
        one = connection.execute(sa.select(StudyRow.__table__)).mappings().one()
        first = connection.execute(sa.select(TrialRow.__table__)).mappings().first()
        config = connection.execute(sa.select(ConfigurationRow.__table__)).mappings().first()
        assert first is not None
        assert config is not None
        sentinel = connection.execute(
            sa.insert(SentinelRow).values(machine_id=one["machine_id"], compute_ms=1.0, read_ms=1.0)
        ).inserted_primary_key[0]
        number = 10_000
        for index in range(1, STUDIES):
            study_id = 1000 + index
            connection.execute(
                sa.insert(StudyRow), {**one, "id": study_id, "name": f"copy-{index}"}
            )
            numbers = range(number, number + TRIALS)
            number += TRIALS
            connection.execute(
                sa.insert(ConfigurationRow),
                [{**config, "id": n, "hash": f"{n:016d}"} for n in numbers],
            )
            connection.execute(
                sa.insert(TrialRow),
                [
                    {**first, "id": n, "study_id": study_id, "number": place,
                     "configuration_id": n, "state": "COMPLETE"}
                    for place, n in enumerate(numbers)
                ],
            )  # fmt: skip
            connection.execute(
                sa.insert(SampleRow),
                [
                    {"configuration_id": n, "machine_id": one["machine_id"], "trial_id": n,
                     "sentinel_id": sentinel, "repeat": repeat, "role": "search",
                     "metric": metric, "value": 10.0 + n % 97 + repeat, "unit": "x"}
                    for n in numbers for repeat in range(REPEATS) for metric in METRICS
                ],
            )  # fmt: skip
    database.close()
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
