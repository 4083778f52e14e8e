"""Compares a config with 16 bits item by item, so that differences are due to the config alone.

In: two reports of the same tasks, with their items. Out: the mean difference of each metric with
its 95 % interval, which is much narrower than that of two unpaired means.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.contract.report import Metric, QualityReport
from engine.contract.statistics import mean_metric


@dataclass(frozen=True)
class PairedResult:
    """One metric of one task: means over the common items, and the difference config minus 16 bits.

    chance: the score of guessing (None: the task has no choices). If it is given, all three figures
    are chance-corrected: 0 is guessing, 1 is all right.
    """

    task: str
    metric: str
    value: float
    reference: float
    difference: Metric
    chance: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return asdict(self)


def paired_results(reference: QualityReport, report: QualityReport) -> tuple[PairedResult, ...]:
    """Pairs every metric for which both reports kept items."""
    chances = {(one.task, one.metric): one.chance for one in report.tasks}
    known = {
        (one.task, one.metric): dict(zip(one.docs, one.values, strict=True))
        for one in reference.items
    }
    found = []
    for own in report.items:
        key = own.task, own.metric
        theirs = known.get(key, {})
        pairs = [
            (value, theirs[doc])
            for doc, value in zip(own.docs, own.values, strict=True)
            if doc in theirs
        ]
        if not pairs:
            continue
        chance = chances.get(key)
        floor = chance or 0.0
        scale = 1 - floor
        count = len(pairs)
        found.append(
            PairedResult(
                task=own.task,
                metric=own.metric,
                value=(sum(value for value, _ in pairs) / count - floor) / scale,
                reference=(sum(other for _, other in pairs) / count - floor) / scale,
                difference=mean_metric(
                    [(value - other) / scale for value, other in pairs],
                    "bits" if own.metric == "bits_per_byte" else "fraction",
                    signed=True,
                ),
                chance=chance,
            )
        )
    return tuple(found)
