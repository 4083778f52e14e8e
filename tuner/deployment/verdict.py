"""Judges present figures by a file's recorded ones: only what is worse counts against a config.

In: recorded figures and fresh reports. Out: a Verification. Machines drift, so the expected value
is the recorded figure scaled by the sentinel (the fixed kernel and read timed beside it, then and
now): the fraction of the time that the config waited for records by the read, the rest by the
kernel. What a sentinel of milliseconds does not show is the load by other programs: figures that
are too slow beside it are no verdict on the config, and the answer is to run again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.contract.report import MemoryReading, Metric, Report, Sentinel
from engine.contract.statistics import mean_metric, quantile
from engine.types import format_bytes
from tuner.definition.objectives import TABLE
from tuner.deployment.document import Measured, MeasuredMetric, MeasuredSentinel
from tuner.pareto.noise import START_DEVIATION

MOST_BAND = 0.10  # for the scatter of engine starts, and of repeats that still tell something
MOST_LOAD = 0.05  # of the processor, used by others
MOST_SPREAD = 1.25  # of the sentinel's kernel, slowest repeat over fastest
VERIFIED = ("output_tps", "tpot_ms")
State = Literal["holds", "faster", "slower", "unsteady"]
Outcome = Literal["holds", "faster", "slower", "busy", "over_budget"]


@dataclass(frozen=True)
class Verdict:
    """One speed: as recorded, as expected at the present sentinel, the band around that in which it
    holds, as measured now. gain: how many times as fast as expected, below 1 for slower."""

    metric: str
    recorded: MeasuredMetric
    expected: float
    low: float
    high: float
    found: Metric
    gain: float
    state: State

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return {
            "metric": self.metric,
            "recorded": self.recorded.model_dump(mode="json"),
            "expected": self.expected,
            "band": [self.low, self.high],
            "found": asdict(self.found),
            "gain": self.gain,
            "verdict": self.state,
            "inside": self.state in ("holds", "faster"),
        }

    @property
    def rated(self) -> str:
        """The verdict in words, with how much faster or slower."""
        if self.state in ("faster", "slower"):
            return f"{abs(self.gain - 1):.0%} {self.state}"
        return self.state

    @property
    def sentence(self) -> str:
        """`tpot_ms is 12.1 ms, expected 9.8 to 10.4: 17% slower`."""
        return (
            f"{self.metric} is {self.found.value:.4g} {self.found.unit}, expected {self.low:.4g} "
            f"to {self.high:.4g}: {self.rated}"
        )


@dataclass(frozen=True)
class Load:
    """What else the machine did. others_cpu_fraction: of the processor, used by other programs
    meanwhile, None if unknown; sentinel_spread: of the fixed kernel over the repeats, slowest over
    fastest."""

    others_cpu_fraction: float | None
    sentinel_spread: float

    @property
    def busy(self) -> bool:
        """Whether that explains a slow run."""
        return (self.others_cpu_fraction or 0.0) > MOST_LOAD or self.sentinel_spread > MOST_SPREAD

    @property
    def sentence(self) -> str:
        """What was seen."""
        others = self.others_cpu_fraction
        used = "an unknown part" if others is None else f"{others:.0%}"
        return (
            f"other programs used {used} of the processor, and the fixed kernel took "
            f"{self.sentinel_spread:.2f} times as long in one repeat as in another"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return {**asdict(self), "busy": self.busy}


@dataclass(frozen=True)
class Verification:
    """The verdicts of all speeds, the sentinel of then and now, the load now. over_budget: what was
    seen of memory beyond the budget, None if it was kept."""

    verdicts: tuple[Verdict, ...]
    recorded: MeasuredSentinel
    found: Sentinel
    load: Load
    over_budget: str | None

    @property
    def outcome(self) -> Outcome:
        """All verdicts in one word. A machine's load excuses speeds, not memory."""
        states = {verdict.state for verdict in self.verdicts}
        if self.over_budget:
            return "over_budget"
        if "slower" in states:
            return "busy" if self.load.busy else "slower"
        if "unsteady" in states:
            return "busy"
        return "faster" if "faster" in states else "holds"

    @property
    def holds(self) -> bool:
        """Whether the config does here what its file says, or better."""
        return self.outcome in ("holds", "faster")

    @property
    def sentence(self) -> str:
        """What decides the outcome, and how fast it is."""
        told = [one.sentence for one in self.verdicts]
        if self.outcome == "busy" and self.load.busy:
            told.insert(0, f"busy machine: {self.load.sentence}")
        if self.over_budget:
            told.insert(0, self.over_budget)
        return "; ".join(told)

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return {
            "outcome": self.outcome,
            "inside": self.holds,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "load": self.load.to_json(),
            "over_budget": self.over_budget,
            "sentinel": {
                "recorded": self.recorded.model_dump(mode="json"),
                "found": asdict(self.found),
            },
        }


def judge(
    measured: Measured,
    reports: Sequence[Report],
    budget_bytes: int,
    speeds: Sequence[str] = VERIFIED,
) -> Verification:
    """Compares reports, at least one, with the recorded figures. budget_bytes: of the device, 0 for
    none; speeds: those of VERIFIED that the reports can tell."""
    now = Sentinel(
        statistics.fmean(one.sentinel.compute_ms for one in reports),
        statistics.fmean(one.sentinel.read_ms for one in reports),
    )
    then = measured.get("sentinel")
    if not isinstance(then, MeasuredSentinel) or not then.compute_ms or not then.read_ms:
        then = MeasuredSentinel(compute_ms=now.compute_ms, read_ms=now.read_ms)
    longer = slow_down(measured, then, now)
    verdicts = []
    for name in speeds:
        recorded, values = measured.get(name), values_of(reports, name)
        if isinstance(recorded, MeasuredMetric) and recorded.value > 0 and values:
            verdicts.append(_verdict(name, recorded, longer, values))
    memory = max((one.memory for one in reports), key=lambda one: one.external_peak_bytes)
    return Verification(
        tuple(verdicts), then, now, _load(reports), _over_budget(memory, budget_bytes)
    )


def values_of(reports: Sequence[Report], metric: str) -> list[float]:
    """The metric's value in each repeat."""
    return [sample.value for one in reports for sample in one.samples if sample.metric == metric]


def slow_down(measured: Measured, then: MeasuredSentinel, now: Sentinel) -> float:
    """The expected factor on a token's time now, by the sentinel and the time split."""
    waited = _fraction_waited(measured)
    return waited * now.read_ms / then.read_ms + (1 - waited) * now.compute_ms / then.compute_ms


def log_half_width(metric: MeasuredMetric | Metric) -> float:
    """Half of the interval's width on the logarithm; of one that reaches 0, its upper half. The
    value is positive."""
    if metric.low > 0:
        return math.log(metric.high / metric.low) / 2
    return math.log(metric.high / metric.value)


def _verdict(name: str, recorded: MeasuredMetric, longer: float, values: list[float]) -> Verdict:
    """The scatter of engine starts and both intervals add in quadrature on the logarithm. A single
    present value is taken to scatter as the recorded mean did."""
    sign = TABLE[name].sign
    expected = recorded.value * longer**-sign
    found = mean_metric(values, recorded.unit)
    starts = quantile(math.inf) * START_DEVIATION * math.sqrt(1 + 1 / max(1, recorded.n))
    before = log_half_width(recorded)
    own = log_half_width(found) if found.n > 1 else before
    certain = math.hypot(before, min(MOST_BAND, starts))
    width = math.hypot(certain, own)
    gain = (found.value / expected) ** sign
    state: State = "holds"
    if abs(math.log(gain)) > width:
        state = "faster" if gain > 1 else "slower"
    elif -math.log(gain) > certain and own > MOST_BAND:
        state = "unsteady"
    factor = math.exp(width)
    return Verdict(
        name, recorded, expected, expected / factor, expected * factor, found, gain, state
    )


def _load(reports: Sequence[Report]) -> Load:
    seen = [one.environment.get("others_cpu_fraction") for one in reports]
    known = [float(one) for one in seen if one is not None]
    kernels = [one.sentinel.compute_ms for one in reports]
    return Load(
        statistics.fmean(known) if known else None,
        max(kernels) / min(kernels) if min(kernels) > 0 else 1.0,
    )


def _over_budget(memory: MemoryReading, budget_bytes: int) -> str | None:
    peak = memory.external_peak_bytes
    if not budget_bytes or peak <= budget_bytes:
        return None
    return (
        f"measured from outside ({memory.external_source}) it took {format_bytes(peak)}, the "
        f"budget is {format_bytes(budget_bytes)}"
    )


def _fraction_waited(measured: Mapping[str, Any]) -> float:
    stall, token = measured.get("stall_ms_per_token"), measured.get("tpot_ms")
    if not isinstance(stall, MeasuredMetric) or not isinstance(token, MeasuredMetric):
        return 0.0
    return min(1.0, max(0.0, stall.value / token.value)) if token.value else 0.0
