"""Verdicts on planted figures: each outcome, what the intervals excuse, what the load excuses."""

import math
from typing import Any

import pytest

from engine.contract.report import MemoryReading, Report, Sample, Sentinel
from tuner.deployment.document import MeasuredMetric, MeasuredSentinel
from tuner.deployment.verdict import MOST_BAND, Verification, judge, slow_down


def metric(value: float, half: float = 0.0, n: int = 3) -> MeasuredMetric:
    return MeasuredMetric(
        value=value, low=value / math.exp(half), high=value * math.exp(half), n=n, unit=""
    )


def report(
    tps: float, others: float | None = 0.0, compute_ms: float = 2.0, peak_bytes: int = 0
) -> Report:
    samples = (Sample("output_tps", 0, tps, "tokens/s"), Sample("tpot_ms", 0, 1e3 / tps, "ms"))
    memory = MemoryReading(0, 0, 0, 0, peak_bytes, "planted", 0, 0)
    return Report({}, samples, memory, Sentinel(compute_ms, 1.0), {"others_cpu_fraction": others})


def judged(
    *tps: float, half: float = 0.0, others: float | None = 0.0, budget_bytes: int = 0
) -> Verification:
    """100 tokens/s recorded, these found now."""
    measured: Any = {
        "output_tps": metric(100.0, half), "tpot_ms": metric(10.0, half),
        "sentinel": MeasuredSentinel(compute_ms=2.0, read_ms=1.0),
    }  # fmt: skip
    reports = [report(one, others, peak_bytes=1000) for one in tps]
    return judge(measured, reports, budget_bytes)


@pytest.mark.parametrize(
    ("tps", "outcome"),
    [
        ((100, 101, 99), "holds"),
        ((93, 93, 93), "holds"),
        ((107, 107, 107), "holds"),
        ((85, 85, 85), "slower"),
        ((150, 151, 149), "faster"),
        ((85,), "slower"),
        ((93,), "holds"),
    ],
)
def test_only_slower_fails(tps: tuple[float, ...], outcome: str):
    found = judged(*tps)
    assert found.outcome == outcome
    assert found.holds == (outcome != "slower")
    assert {one.state for one in found.verdicts} == {outcome}


def test_faster_says_by_how_much():
    found = judged(150, 150, 150)
    assert "output_tps is 150" in found.sentence
    assert found.sentence.count("50% faster") == 2


@pytest.mark.parametrize(("half", "outcome"), [(0.0, "slower"), (0.05, "slower"), (0.2, "holds")])
def test_a_wide_recorded_interval_is_not_contradicted_inside_it(half: float, outcome: str):
    assert judged(85, 85, 85, half=half).outcome == outcome


def test_both_intervals_and_the_scatter_of_starts_add_in_quadrature():
    one = judged(100, 100, 100, half=0.24).verdicts[0]
    assert math.log(one.high / one.expected) == pytest.approx(math.hypot(0.24, MOST_BAND))
    single = judged(100, half=0.24).verdicts[0]  # scatters as the recorded mean did
    width = math.hypot(0.24, 0.24, MOST_BAND)
    assert math.log(single.high / single.expected) == pytest.approx(width)


def test_repeats_that_scatter_are_no_verdict_and_no_excuse():
    scattered = judged(60, 85, 110)
    assert {one.state for one in scattered.verdicts} == {"unsteady"}
    assert (scattered.outcome, scattered.holds) == ("busy", False)
    assert "unsteady" in scattered.sentence
    assert "busy machine" not in scattered.sentence
    assert judged(30, 40, 50).outcome == "slower"
    assert judged(80, 100, 120).outcome == "holds"


@pytest.mark.parametrize(("others", "outcome"), [(0.3, "busy"), (0.01, "slower"), (None, "slower")])
def test_other_programs_excuse_a_slow_run(others: float | None, outcome: str):
    assert judged(70, 70, 70, others=others).outcome == outcome
    assert judged(100, 100, 100, others=others).outcome == "holds"
    assert judged(150, 150, 150, others=others).outcome == "faster"


def test_a_kernel_that_changes_its_speed_meanwhile_excuses_it_too():
    measured: Any = {
        "output_tps": metric(100.0), "sentinel": MeasuredSentinel(compute_ms=2.0, read_ms=1.0),
    }  # fmt: skip
    changing = [report(50, None, compute_ms=ms) for ms in (2.0, 2.0, 3.0)]
    assert judge(measured, changing, 0).outcome == "busy"
    assert judge(measured, [report(50, None)] * 3, 0).outcome == "slower"


def test_memory_is_excused_by_no_load_and_no_speed():
    assert judged(150, 150, others=0.5, budget_bytes=999).outcome == "over_budget"
    assert judged(150, 150, others=0.5, budget_bytes=1000).outcome == "faster"


def test_the_sentinel_counts_by_what_the_config_waited_for():
    then, now = MeasuredSentinel(compute_ms=2, read_ms=1), Sentinel(compute_ms=4, read_ms=1)
    measured: Any = {"tpot_ms": metric(10.0), "stall_ms_per_token": metric(7.5)}
    assert slow_down(measured, then, now) == pytest.approx(0.75 * 1 + 0.25 * 2)
    assert slow_down({}, then, now) == 2
