"""What ends early, and what must not."""

import math
import statistics
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from engine.contract.report import Metric
from engine.contract.statistics import mean_metric
from tuner.pareto.explain import bottleneck_of, explain, twin_error
from tuner.pareto.front import build_front
from tuner.pareto.noise import (
    FIRST_DEVIATION,
    LEAST_DEVIATION,
    START_DEVIATION,
    mean_error,
    mean_error_of,
    pooled_deviation,
)
from tuner.pareto.probability import MOST_DRAWN, likely_members, near_front, on_front
from tuner.statistics import confirmed_interval
from tuner.store.snapshots import TrialSnapshot
from tuner.study.pruning import Incumbents, incumbents_of

OBJECTIVES = ("output_tps", "tpot_ms", "quality")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def trial(number: int, tps: tuple[float, ...], quality: float = 1.0, **changes: Any):
    metrics = {
        "output_tps": mean_metric(tps, "tok/s"),
        "tpot_ms": mean_metric([1000 / value for value in tps], "ms"),
    }
    scores = {**{name: metric.value for name, metric in metrics.items()}, "quality": quality}
    made = TrialSnapshot(
        number, number, "COMPLETE", None, None, {"precision.bits": number}, scores, {}, {}, number,
        {"budget": {"vram_bytes": 8}}, metrics, None, None, NOW, NOW,
    )  # fmt: skip
    return replace(made, **changes)


def incumbents(*trials: TrialSnapshot) -> Incumbents:
    return incumbents_of(OBJECTIVES, build_front(trials, OBJECTIVES).members, trials)


def values(tps: float) -> dict[str, list[float]]:
    return {"output_tps": [tps], "tpot_ms": [1000 / tps]}


def test_what_cannot_reach_the_front_ends():
    front = incumbents(trial(0, (20.0, 20.2, 19.8)))
    assert front.beating(values(10.0), 0.9)[0] == 0


def test_what_its_noise_may_lift_onto_the_front_goes_on():
    front = incumbents(trial(0, (20.0, 20.2, 19.8)))
    assert front.beating(values(20.0 * (1 - FIRST_DEVIATION)), 1.0)[0] is None


def test_what_a_lucky_start_may_explain_goes_on():
    front = incumbents(*(trial(n, (20.0, 20.1, 19.9)) for n in range(3)))  # repeats scatter by 2 %
    assert front.deviation == LEAST_DEVIATION
    assert front.beating(values(20.0 * (1 - START_DEVIATION)), 1.0)[0] is None
    assert front.beating(values(20.0 * (1 - 3 * START_DEVIATION)), 1.0)[0] is not None


def test_a_mean_is_surer_by_repeats_and_surer_still_by_starts():
    assert mean_error(0.03, 1) == pytest.approx(math.hypot(0.03, START_DEVIATION))
    assert mean_error(0.0, 5) == START_DEVIATION  # of one start
    assert mean_error(0.0, 4, fresh=4) == pytest.approx(START_DEVIATION / 2)
    assert mean_error(0.0, 5, fresh=3) == pytest.approx(START_DEVIATION * math.sqrt(7) / 5)
    confirmed = replace(
        trial(0, (20.0,) * 5), confirmed={"output_tps": mean_metric((20.0,) * 3, "")}
    )
    assert mean_error_of(confirmed, "output_tps", 0.0) == mean_error(0.0, 3, fresh=3)


def test_a_quality_that_is_not_known_is_hoped_for():
    front = incumbents(trial(0, (20.0, 20.2, 19.8), quality=0.98))
    pruned, bound = front.beating(values(10.0), None)
    assert (pruned, bound["quality"]) == (None, 1.0)
    assert front.beating(values(10.0), 0.97)[0] == 0


def test_a_larger_budget_beats_nothing_under_a_smaller_one():
    front = incumbents(trial(0, (20.0, 20.2, 19.8)))
    assert front.beating(values(10.0), 0.9, budget_bytes=4)[0] is None
    assert front.beating(values(10.0), 0.9, budget_bytes=8)[0] == 0


def test_the_scatter_of_a_repeat_is_pooled_over_configurations():
    some = [trial(0, (10.0, 11.0, 9.0)), trial(1, (20.0, 22.0, 18.0))]
    scatter = statistics.stdev([math.log(value) for value in (10.0, 11.0, 9.0)])
    assert pooled_deviation(some, "output_tps") == pytest.approx(scatter)
    assert pooled_deviation(some[:1], "output_tps") == FIRST_DEVIATION


def test_confirming_values_are_reported_with_the_scatter_of_all():
    found = confirmed_interval([19.0, 21.0], [30.0, 32.0, 19.0, 21.0], "tok/s")
    alone = mean_metric([19.0, 21.0], "tok/s")
    assert (found.value, found.n) == (20.0, 2)
    assert found.high - found.low < alone.high - alone.low


def test_one_value_has_no_interval():
    assert confirmed_interval([5.0], [5.0], "ms") == Metric(5.0, 5.0, 5.0, 1, "ms")


def test_what_binds_and_what_the_neighbours_give():
    split = {
        f"time_ms_per_token.{part}": Metric(ms, ms, ms, 3, "ms")
        for part, ms in {"disk_wait": 60.0, "compute": 30.0, "non_expert": 10.0}.items()
    }
    first = trial(4, (20.0, 20.0, 20.0), quality=0.99)
    first = replace(first, metrics={**first.metrics, **split})
    second = trial(8, (15.0, 15.0, 15.0), quality=1.0)
    found = explain(build_front([first, second], OBJECTIVES), [first, second])
    assert found is not None
    assert bottleneck_of(first).part == "disk_wait"  # type: ignore[union-attr]
    assert bottleneck_of(second) is None
    (trade_off,) = found.trade_offs
    assert trade_off.changes["output_tps"] in (pytest.approx(-0.25), pytest.approx(1 / 3))
    assert set(trade_off.settings) == {"precision.bits"}


def test_the_common_factor_of_predictions_is_no_error():
    some = [
        trial(n, (10.0 * (n + 1),) * 3, predicted={"output_tps": 35.0 * (n + 1)}) for n in range(3)
    ]
    found = twin_error(some)
    assert found is not None
    assert (found.factor, found.median, found.n) == (pytest.approx(3.5), pytest.approx(0.0), 3)
    assert twin_error([trial(0, (10.0, 10.0))]) is None


def test_a_prediction_of_nothing_has_no_error():
    none = trial(0, (10.0, 10.0), predicted={"output_tps": 0.0, "output_tps_low": 0.0})
    assert twin_error([none]) is None
    zero = {"output_tps": mean_metric((0.0, 0.0), "tok/s")}
    still = trial(1, (10.0, 10.0), predicted={"output_tps": 5.0}, metrics=zero)
    assert twin_error([none, still]) is None


def test_what_lies_within_noise_may_be_on_the_front():
    best = trial(0, (20.0, 21.0, 19.0))
    close = trial(1, (19.8, 20.8, 18.8))
    far = trial(2, (10.0, 10.5, 9.5))
    front = build_front([best, close, far], OBJECTIVES)
    sure = on_front(front)
    assert sure[0] > sure[1] > 0.2
    assert sure.get(2, 0.0) == 0.0
    assert abs(sure[0] + sure[1] - 1) < 0.01  # of two that differ by noise, one
    assert [number for number, _ in near_front(front, sure)] == [1]


def test_a_quality_that_nothing_else_has_is_surely_on_the_front():
    front = build_front([trial(0, (20.0, 21.0, 19.0)), trial(1, (5.0, 5.1, 4.9), 1.1)], OBJECTIVES)
    assert on_front(front) == {0: 1.0, 1: 1.0}


def test_of_two_that_noise_cannot_tell_apart_one_stays_on_the_front():
    """The second is a little worse in speed and a hair better in time: noise, most likely."""
    best = trial(0, (20.0, 21.0, 19.0))
    shade = trial(1, (19.0, 20.0, 18.0))
    shade = replace(shade, scores={**shade.scores, "tpot_ms": best.scores["tpot_ms"] * 0.999})
    front = build_front([best, shade], OBJECTIVES)
    assert len(front.members) == 2
    kept = likely_members(front)
    assert 0 in [member.number for member in kept]
    again = likely_members(build_front([shade, best], OBJECTIVES))
    assert {member.number for member in again} == {member.number for member in kept}


def test_a_front_is_never_empty_where_something_ran():
    equals = [trial(number, (20.0, 21.0, 19.0)) for number in range(5)]
    assert likely_members(build_front(equals, OBJECTIVES))
    assert likely_members(build_front([], OBJECTIVES)) == ()


def test_a_front_without_scatter_is_that_of_the_means():
    front = build_front([trial(n, (10.0 + n,), 1 - n / 10) for n in range(4)], OBJECTIVES)
    assert sorted(t.number for t in likely_members(front)) == [0, 1, 2, 3]


def test_a_large_front_loses_none_of_its_members():
    speeds = [1.5**n for n in range(MOST_DRAWN + 20)]
    many = [trial(n, (tps, tps), quality=1 - n / 1000) for n, tps in enumerate(speeds)]
    front = build_front(many, OBJECTIVES)
    assert len(front.members) == len(many)
    assert len(likely_members(front)) == len(many)
