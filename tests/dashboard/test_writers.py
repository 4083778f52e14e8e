"""The pages while four processes write: no error, no count that never was."""

import re
import time

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.views.studies import STATES
from tests.dashboard.conftest import Opened
from tests.fakes.writers import WRITERS, Writers
from tuner.store.database import open_read_only
from tuner.store.overview import Overview, TrialFilter
from tuner.store.repository import Store

LOOKS, LOOK_S = 6, 2.0


def counts_of(app: AppTest) -> dict[str, int]:
    """What the first page shows of the chosen study."""
    said = next(one.value for one in app.markdown if re.match(r"\*\*\d+ trials", one.value))
    counts = {"trials": int(said.split()[0].removeprefix("**"))}
    for state, words in STATES.items():
        if found := re.search(rf"(\d+) {words}", said):
            counts[state.lower()] = int(found.group(1))
    return counts


def check(counts: dict[str, int], before: dict[str, int]) -> None:
    """At every snapshot the states sum to the trials, each writer runs one trial at most, and what
    has ended has ended."""
    assert sum(count for name, count in counts.items() if name != "trials") == counts["trials"]
    assert counts.get("running", 0) <= WRITERS
    for name in ("trials", "complete", "failed"):
        assert counts.get(name, 0) >= before.get(name, 0)


@pytest.mark.alone
def test_pages_hold_while_four_processes_write(opened: Opened, own_storage: str):
    app = opened("studies", own_storage)
    counts = start = counts_of(app)
    with Writers(own_storage):
        deadline = time.monotonic() + 60
        looks = 0
        while looks < LOOKS or (counts == start and time.monotonic() < deadline):
            page = ("studies", "front", "trials")[looks % 3]
            app.switch_page(f"views/{page}.py").run()
            assert not app.exception
            assert not app.error
            if page == "studies":
                check(counts_of(app), counts)
                counts = counts_of(app)
                row = app.dataframe[-1].value.set_index("study").loc["small"]
                assert row["trials"] == counts["trials"]
            looks += 1
    assert counts["trials"] > start["trials"]


@pytest.mark.alone
def test_answers_of_one_moment_agree_while_four_processes_write(any_storage: str):
    database = open_read_only(any_storage)
    seen: set[int] = set()
    with Writers(any_storage):
        deadline = time.monotonic() + 60
        until = time.monotonic() + LOOK_S
        while time.monotonic() < (until if len(seen) > 3 else deadline):
            with database.read_snapshot() as snapshot:
                overview, study = Overview(snapshot), Store(snapshot).study("small")
                states = study.trials_by_state
                assert overview.count(study, TrialFilter()) == study.trials
                assert overview.failures(study).get("crash", 0) == states["FAILED"]
                assert len(overview.running(study)) == states.get("RUNNING", 0)
                points = overview.points(study, ("output_tps", "tpot_ms", "quality"))
                assert len(points) == states["COMPLETE"]
                seen.add(study.trials)
    database.close()
    assert len(seen) > 3
