"""Compares two configs: which settings differ, and which figures differ beyond noise.

In: two deployments (files, or the picks of studies). Out: a Comparison. The figures were measured
at different times, so the ratio's interval joins both, and each one's sentinel is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.contract.report import Metric
from tuner.deployment.document import Deployment, MeasuredMetric, MeasuredSentinel
from tuner.deployment.verdict import log_half_width


@dataclass(frozen=True)
class Figure:
    """One metric of both. ratio: second over first, with the 95 % interval of both together."""

    metric: str
    first: MeasuredMetric
    second: MeasuredMetric
    ratio: Metric | None

    @property
    def differs(self) -> bool:
        """Whether the interval of the ratio excludes 1."""
        return self.ratio is not None and not self.ratio.low <= 1 <= self.ratio.high


@dataclass(frozen=True)
class Comparison:
    """The differences of two configs. settings: path -> (first, second) where they differ; figures:
    metrics of both; notes: what makes them hard to compare."""

    settings: dict[str, tuple[Any, Any]]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return {
            "settings": {path: list(pair) for path, pair in self.settings.items()},
            "metrics": {
                figure.metric: {
                    "first": figure.first.model_dump(mode="json"),
                    "second": figure.second.model_dump(mode="json"),
                    "ratio": None
                    if figure.ratio is None
                    else {
                        "value": figure.ratio.value,
                        "low": figure.ratio.low,
                        "high": figure.ratio.high,
                    },
                    "differs": figure.differs,
                }
                for figure in self.figures
            },
            "notes": list(self.notes),
        }


def compare(first: Deployment, second: Deployment) -> Comparison:
    """Compares everything that both files state."""
    own, other = first.config().flat(), second.config().flat()
    settings = {
        path: (own.get(path), other.get(path))
        for path in sorted(own.keys() | other.keys())
        if own.get(path) != other.get(path)
    }
    figures = [
        Figure(name, one, two, _ratio(one, two))
        for name, one in first.measured.items()
        if isinstance(one, MeasuredMetric)
        and isinstance(two := second.measured.get(name), MeasuredMetric)
    ]
    if first.quality and second.quality:
        one, two = (_certain(side.value) for side in (first.quality, second.quality))
        figures.append(Figure("quality", one, two, None))
    return Comparison(settings, tuple(figures), tuple(_notes(first, second)))


def _certain(value: float) -> MeasuredMetric:
    """Wraps a quality value, whose interval the files do not state."""
    return MeasuredMetric(value=value, low=value, high=value, n=1, unit="ratio to 16 bits")


def _ratio(first: MeasuredMetric, second: MeasuredMetric) -> Metric | None:
    """second / first; the half-widths of two independent means add in quadrature, on the
    logarithm, as both are positive."""
    if first.value <= 0 or second.value <= 0 or min(first.n, second.n) < 2:
        return None
    ratio = second.value / first.value
    factor = math.exp(math.hypot(*(log_half_width(one) for one in (first, second))))
    return Metric(ratio, ratio / factor, ratio * factor, min(first.n, second.n), "ratio")


def _notes(first: Deployment, second: Deployment) -> list[str]:
    notes = []
    if first.measured == second.measured:
        notes.append("both state the same measurements: one config, measured once for both")
    if first.model.fingerprint != second.model.fingerprint:
        notes.append(f"two models: {first.model.id} and {second.model.id}")
    if first.workload.hash != second.workload.hash:
        notes.append(f"two workloads: {first.workload.name} and {second.workload.name}")
    if _machine(first.machine) != _machine(second.machine):
        notes.append("two machines: speeds are not those of the settings alone")
    drift = _drift(first, second)
    if drift is not None and abs(drift - 1) > 0.05:
        notes.append(
            f"the machine's fixed kernel took {drift:.2f} times as long beside the second: run "
            "`tune bench` on both files to compare them interleaved"
        )
    return notes


def _machine(machine: Mapping[str, Any]) -> Any:
    return machine.get("fingerprint", machine)


def _drift(first: Deployment, second: Deployment) -> float | None:
    one, two = first.measured.get("sentinel"), second.measured.get("sentinel")
    if not isinstance(one, MeasuredSentinel) or not isinstance(two, MeasuredSentinel):
        return None
    return two.compute_ms / one.compute_ms if one.compute_ms else None
