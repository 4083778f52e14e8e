"""Objective values and constraints from metrics."""

import pytest

from engine.contract.report import Metric
from tuner.definition.objectives import (
    CONSTRAINTS,
    memory_violation,
    objective_names,
    scores,
    violations,
)
from tuner.definition.study import Constraints

METRICS = {
    "output_tps": Metric(10.0, 9.0, 11.0, 3, "tok/s"),
    "tpot_ms": Metric(50.0, 49.0, 51.0, 3, "ms"),
    "ttft_ms": Metric(300.0, 290.0, 310.0, 3, "ms"),
}


def test_scores_follow_the_objectives_order():
    found = scores(METRICS, 0.9, ["quality", "output_tps"])
    assert list(found.items()) == [("quality", 0.9), ("output_tps", 10.0)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["throughput", "latency"], ["output_tps", "tpot_ms"]),
        (["Quality", "tokens/s", "tpot"], ["quality", "output_tps", "tpot_ms"]),
        (["output_tps", "tpot_ms", "quality"], ["output_tps", "tpot_ms", "quality"]),
    ],
)
def test_objectives_may_be_plain_words(words: list[str], names: list[str]):
    assert objective_names(words) == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["throughputs"], "the nearest is 'throughput'"),
        (["ttft_ms"], "allowed: output_tps, tpot_ms, quality"),
        (["throughput", "output_tps"], "each once"),
        ([], "name one or more"),
    ],
)
def test_other_objectives_are_refused_with_the_nearest(words: list[str], says: str):
    with pytest.raises(ValueError, match=says):
        objective_names(words)


def test_violations_are_relative_and_always_complete():
    limits = Constraints(min_quality=0.8, max_ttft_ms=200, max_tpot_ms=100)
    found = violations(METRICS, 0.9, limits)
    assert tuple(found) == CONSTRAINTS
    assert found["ttft"] == pytest.approx(0.5)
    assert found["tpot"] == pytest.approx(-0.5)
    assert found["quality"] < 0


def test_no_limit_is_no_violation():
    assert set(violations(METRICS, 0.1, Constraints()).values()) == {0.0}


def test_what_does_not_fit_violates_memory_by_how_much():
    assert memory_violation(150, 100)["memory"] == pytest.approx(0.5)
    assert memory_violation(None, 100)["memory"] > 0
    assert memory_violation(150, 0)["memory"] > 0
