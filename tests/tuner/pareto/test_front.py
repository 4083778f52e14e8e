"""Choosing from a front."""

from datetime import UTC, datetime

import pytest

from tuner.errors import StudyError, UsageError
from tuner.pareto.front import build_front
from tuner.store.snapshots import TrialSnapshot

OBJECTIVES = ("output_tps", "tpot_ms", "quality")


def trial(number: int, tps: float, tpot: float, quality: float, **changes) -> TrialSnapshot:
    fields = {
        "id": number, "number": number, "state": "COMPLETE", "failure": None, "reason": None,
        "params": {}, "scores": dict(zip(OBJECTIVES, (tps, tpot, quality), strict=True)),
        "violations": {}, "memory": {}, "configuration_id": number, "config": {}, "metrics": {},
        "sentinel": None, "quality": None, "started": datetime.now(UTC), "finished": None,
    }  # fmt: skip
    return TrialSnapshot(**{**fields, **changes})


TRIALS = [
    trial(0, 10, 100, 1.0),
    trial(1, 40, 30, 0.97),
    trial(2, 60, 25, 0.5),
    trial(3, 9, 110, 0.9),
]


def test_the_front_holds_what_nothing_beats_fastest_first():
    assert [t.number for t in build_front(TRIALS, OBJECTIVES).members] == [2, 1, 0]


def test_nobody_is_recommended_ruins_unless_they_ask():
    assert build_front(TRIALS, OBJECTIVES).knee.number == 1
    assert build_front([TRIALS[2]], OBJECTIVES).knee.number == 2
    assert build_front(TRIALS, OBJECTIVES, min_quality=0.1).knee.number in (1, 2)


@pytest.mark.parametrize(
    ("pick", "number"), [("throughput", 2), ("latency", 2), ("quality", 0), ("knee", 1), ("3", 3)]
)
def test_picks(pick: str, number: int):
    assert build_front(TRIALS, OBJECTIVES).pick(pick).number == number


def test_a_configuration_counts_once():
    twin = trial(4, 60, 25, 0.5, configuration_id=2)
    assert [t.number for t in build_front([*TRIALS, twin], OBJECTIVES).members] == [2, 1, 0]


def test_what_breaks_a_limit_is_not_on_the_front():
    outside = trial(5, 99, 1, 1.0, violations={"ttft": 0.1})
    assert 5 not in [t.number for t in build_front([*TRIALS, outside], OBJECTIVES).members]


def test_an_empty_front_has_nothing_to_pick():
    with pytest.raises(StudyError, match="no configuration"):
        build_front([], OBJECTIVES).pick("knee")


def test_an_unknown_pick_names_the_choices():
    with pytest.raises(UsageError, match="knee, throughput, latency, quality"):
        build_front(TRIALS, OBJECTIVES).pick("fastest")
