"""Which settings separate good trials from bad ones, those that were ended early included."""

import pytest

from tests.tuner.study.test_pruning import OBJECTIVES, trial
from tuner.pareto.importance import FEWEST_TRIALS, importances


def settings(bits: int, depth: int) -> dict[str, int]:
    return {"precision.bits": bits, "prefetch.depth": depth}


def test_the_setting_that_ended_trials_early_is_what_matters():
    good = [trial(n, (20.0 + n, 20.0), params=settings(4, n % 2)) for n in range(4)]
    bad = [
        trial(n, (5.0,), quality=1.0, params=settings(16, n % 2), state="PRUNED")
        for n in range(4, 12)
    ]
    fractions = importances([*good, *bad], OBJECTIVES)["output_tps"]
    assert fractions["precision.bits"] > 0.9
    assert sum(fractions.values()) == pytest.approx(1.0)


def test_a_quality_that_was_only_granted_does_not_count():
    known = [trial(n, (20.0,), quality=0.9, params=settings(4, n % 2)) for n in range(4)]
    granted = [
        trial(
            n, (5.0,), quality=1.0, params=settings(16, n % 2), state="PRUNED",
            bounds={"quality": 1.0},
        )
        for n in range(4, 8)
    ]  # fmt: skip
    found = importances([*known, *granted], OBJECTIVES)
    assert found["quality"] == {"precision.bits": 0.0, "prefetch.depth": 0.0}
    assert found["output_tps"]["precision.bits"] > 0.9


def test_few_trials_say_nothing():
    few = [trial(n, (20.0 + n,), params=settings(4, n)) for n in range(FEWEST_TRIALS - 1)]
    assert importances(few, OBJECTIVES) == {}


def test_an_objective_that_few_trials_know_says_nothing():
    known = [trial(n, (20.0,), quality=1 - n / 10, params=settings(4 * n, 0)) for n in range(2)]
    granted = [
        trial(n, (5.0 + n,), params=settings(4, n), state="PRUNED", bounds={"quality": 1.0})
        for n in range(2, 5)
    ]
    found = importances([*known, *granted], OBJECTIVES)
    assert set(found["quality"].values()) == {0.0}
