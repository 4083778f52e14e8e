"""The smallest budget for a speed: bisection over replays, its answers and refusals."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuner.conftest import Tune
from tuner.replay.required_memory import STEPS, smallest_step


@given(st.integers(0, STEPS + 5))
def test_bisection_finds_the_first_step_that_is_enough(first: int):
    found = smallest_step(lambda step: step >= first)
    assert found == (max(1, first) if first <= STEPS else None)


@pytest.fixture
def timed(tune: Tune, folder: Path) -> Path:
    """A trace and timings of the fake model."""
    assert tune("trace", "--model", "some-moe", "--repeats", "3").code == 0
    assert tune("profile", "--model", "some-moe", "--bits", "16,4").code == 0
    return folder


def target(tune: Tune, tps: float, *more: str) -> dict:
    done = tune("plan", "--model", "some-moe", "--target-tps", str(tps), "--json", *more)
    assert done.code == 0, done.err
    assert done.document["target"]["label"] == "predicted"
    return {row["bits"]: row for row in done.document["target"]["rows"]}


def test_more_speed_needs_more_memory_and_fewer_bits_need_less(tune: Tune, timed: Path):
    fastest = target(tune, 1.0)[16]["fastest_tps"]
    slow, fast = target(tune, fastest * 0.3), target(tune, fastest * 0.8)
    for rows in (slow, fast):
        assert list(rows) == [16, 4]
        for row in rows.values():
            assert row["low_bytes"] <= row["smallest_bytes"] <= (row["high_bytes"] or 1e99)
            assert row["predicted_tps"] > 0
    assert slow[16]["smallest_bytes"] < fast[16]["smallest_bytes"]
    assert slow[4]["smallest_bytes"] < slow[16]["smallest_bytes"]
    assert 0 < slow[16]["fraction"] < fast[16]["fraction"] <= 1


def test_a_speed_beyond_everything_resident_has_no_budget(tune: Tune, timed: Path):
    fastest = target(tune, 1.0)[16]["fastest_tps"]
    rows = target(tune, fastest * 3)
    assert rows[16]["smallest_bytes"] is None
    assert rows[16]["fastest_tps"] == fastest
    edge = target(tune, fastest * 0.98)[16]
    assert edge["smallest_bytes"] is not None
    assert edge["high_bytes"] is None
    shown = tune("plan", "--model", "some-moe", "--target-tps", str(fastest * 3))
    assert "none" in shown.out
    assert "with all experts" in shown.out


def test_what_was_not_recorded_or_timed_is_asked_for(tune: Tune, folder: Path):
    done = tune("plan", "--model", "some-moe", "--target-tps", "5")
    assert done.code == 2
    assert "tune profile --model" in done.err
    assert tune("profile", "--model", "some-moe").code == 0
    done = tune("plan", "--model", "some-moe", "--target-tps", "5")
    assert done.code == 2
    assert "tune trace --model" in done.err
