"""Verifies that a deployed config still reproduces its file's figures on this machine.

In: a deployment, a session. Out: a Verdict for each speed. Machines drift, so the expected value is
the recorded figure scaled by the sentinel (the fixed kernel and read timed beside it, then and
now): the fraction of the time that the config waited for records by the read, the rest by the
kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.contract.report import Metric, Sentinel
from engine.contract.statistics import mean_metric, quantile, relative_half_width
from tuner.definition.objectives import TABLE
from tuner.definition.study import Repeats
from tuner.deployment.document import Deployment, Measured, MeasuredMetric, MeasuredSentinel
from tuner.engine_client.session import EngineSession
from tuner.pareto.noise import START_DEVIATION

MOST_BAND = 0.10
VERIFIED = ("output_tps", "tpot_ms")


@dataclass(frozen=True)
class Verdict:
    """One speed: as recorded, as expected at the present sentinel with its band, as measured
    now."""

    metric: str
    recorded: MeasuredMetric
    expected: float
    low: float
    high: float
    found: Metric

    @property
    def inside(self) -> bool:
        """Whether the mean lies in the band."""
        return self.low <= self.found.value <= self.high

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return {
            "metric": self.metric,
            "recorded": self.recorded.model_dump(mode="json"),
            "expected": self.expected,
            "band": [self.low, self.high],
            "found": asdict(self.found),
            "inside": self.inside,
        }


@dataclass(frozen=True)
class Verification:
    """The verdicts of all speeds, with the sentinel of then and now."""

    verdicts: tuple[Verdict, ...]
    recorded: MeasuredSentinel
    found: Sentinel

    @property
    def inside(self) -> bool:
        """Whether every speed lies in its band."""
        return all(verdict.inside for verdict in self.verdicts)


def verify(
    deployment: Deployment, session: EngineSession, repeats: Repeats, notify: Callable[[str], None]
) -> Verification:
    """Measures the deployed config afresh, to the interval of `repeats`, and compares.

    session: a new one, so that the process is fresh. Raises WorkerError if the config does not run
    here.
    """
    session.configure(deployment.config())
    workload = deployment.workload.to_workload()
    values: dict[str, list[float]] = {name: [] for name in VERIFIED}
    sentinels: list[Sentinel] = []
    for number in range(repeats.max):
        steady = all(
            relative_half_width(found) <= repeats.half_width for found in values.values() if found
        )
        if number >= repeats.min and steady:
            break
        notify(f"measuring, repeat {number + 1}")
        report = session.measure(
            workload, repeats=1, warm_up=not number, seed=deployment.provenance.seed + number
        )
        for sample in report.samples:
            if sample.metric in values:
                values[sample.metric].append(sample.value)
        sentinels.append(report.sentinel)
    return judge(deployment.measured, values, sentinels)


def judge(
    measured: Measured, values: Mapping[str, Sequence[float]], sentinels: Sequence[Sentinel]
) -> Verification:
    """Compares present values with the recorded ones. values: of some of VERIFIED, one per repeat;
    sentinels: timed beside them, at least one."""
    count = len(sentinels)
    now = Sentinel(
        sum(one.compute_ms for one in sentinels) / count,
        sum(one.read_ms for one in sentinels) / count,
    )
    then = measured.get("sentinel")
    if not isinstance(then, MeasuredSentinel) or not then.compute_ms or not then.read_ms:
        then = MeasuredSentinel(compute_ms=now.compute_ms, read_ms=now.read_ms)
    longer = slow_down(measured, then, now)
    verdicts = []
    for name, found_values in values.items():
        recorded = measured.get(name)
        if isinstance(recorded, MeasuredMetric) and found_values:
            expected = recorded.value * longer ** -TABLE[name].sign
            side = band(recorded)
            found = mean_metric(found_values, recorded.unit)
            verdicts.append(
                Verdict(
                    name, recorded, expected, expected * (1 - side), expected * (1 + side), found
                )
            )
    return Verification(tuple(verdicts), then, now)


def band(recorded: MeasuredMetric) -> float:
    """Half-width of the band, relative, at most MOST_BAND: twice the recorded 95 % half-width,
    since the new mean has its own, combined with the 95 % scatter between `recorded.n` engine
    starts then and one now."""
    half = (recorded.high - recorded.low) / 2 / abs(recorded.value) if recorded.value else 0.0
    starts = quantile(math.inf) * START_DEVIATION * math.sqrt(1 + 1 / max(1, recorded.n))
    return min(MOST_BAND, math.hypot(2 * half, starts))


def slow_down(measured: Measured, then: MeasuredSentinel, now: Sentinel) -> float:
    """The expected factor on a token's time now, by the sentinel and the time split."""
    waited = _fraction_waited(measured)
    return waited * now.read_ms / then.read_ms + (1 - waited) * now.compute_ms / then.compute_ms


def _fraction_waited(measured: Mapping[str, Any]) -> float:
    stall, token = measured.get("stall_ms_per_token"), measured.get("tpot_ms")
    if not isinstance(stall, MeasuredMetric) or not isinstance(token, MeasuredMetric):
        return 0.0
    return min(1.0, max(0.0, stall.value / token.value)) if token.value else 0.0
