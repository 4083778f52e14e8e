"""The canary's plan: it fits the time by the recorded figures, and compares what it still can."""

import pytest

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from tuner.deployment.canary import LIMIT_S, Point, plan_canary
from tuner.deployment.document import MeasuredMetric

WORK = Workload("w", ("a",) * 8, prompt_tokens=8, output_tokens=32, sequences=8)


def point(ttft_ms: float, tpot_ms: float, batch_count: int = 2) -> Point:
    def metric(value: float) -> MeasuredMetric:
        return MeasuredMetric(value=value, low=value, high=value, n=3, unit="ms")

    config = EngineConfig().overlay({"batch.count": batch_count})
    return Point(0, config, {"ttft_ms": metric(ttft_ms), "tpot_ms": metric(tpot_ms)})


@pytest.mark.parametrize(
    ("ttft_ms", "tpot_ms", "repeats", "sequences", "tokens", "speeds"),
    [
        (100, 10, 3, 8, 32, ("output_tps", "tpot_ms")),
        (300, 100, 1, 8, 32, ("output_tps", "tpot_ms")),
        (1500, 140, 1, 2, 32, ("output_tps", "tpot_ms")),
        (1500, 280, 1, 2, 16, ("tpot_ms",)),
        (1500, 600, 1, 2, 8, ("tpot_ms",)),
    ],
)
def test_a_slow_config_is_measured_less(
    ttft_ms: float, tpot_ms: float, repeats: int, sequences: int, tokens: int, speeds: object
):
    plan = plan_canary(point(ttft_ms, tpot_ms), WORK)
    assert plan is not None
    assert (plan.repeats, plan.workload.sequences) == (repeats, sequences)
    assert (plan.workload.output_tokens, plan.speeds) == (tokens, speeds)
    passes = 4 + plan.repeats * sequences / 2
    assert passes * (ttft_ms + tpot_ms * (tokens - 1)) / 1e3 <= LIMIT_S / 2


def test_a_config_that_cannot_answer_in_the_time_has_no_canary():
    assert plan_canary(point(20_000, 10), WORK) is None


def test_a_file_without_times_is_measured_whole():
    plan = plan_canary(Point(0, EngineConfig(), {}), WORK)
    assert plan is not None
    assert (plan.repeats, plan.workload) == (3, WORK)
