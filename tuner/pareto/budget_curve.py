"""Budget curves: the front at each device budget, and the gain of the next gigabyte.

One study answers all budgets: a config runs under the smallest budget that holds it and counts for
the fronts of all larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.pareto.front import Front
from tuner.pareto.noise import budget_of
from tuner.pareto.probability import likely_front
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

GIGABYTE = 10**9


@dataclass(frozen=True)
class CurvePoint:
    """One budget. front: of the configs that fit it; gained_tps: tokens/s per additional gigabyte,
    between the fastest recommended quality of this and of the next smaller budget; None for the
    smallest."""

    budget_bytes: int
    front: Front
    gained_tps: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        members = self.front.members
        return {
            "budget_bytes": self.budget_bytes,
            "recommended": self.front.knee.number if members else None,
            "scores": dict(self.front.knee.scores) if members else None,
            "fastest_tps": fastest_tps(self.front),
            "gained_tps_per_gb": self.gained_tps,
        }


def device_budgets(study: StudySnapshot) -> tuple[int, ...]:
    """Every device budget of a study, ascending; just one if the study has no curve."""
    budget = study.definition["budget"]
    return (*budget.get("curve", ()), budget["vram_bytes"])


def fronts_by_budget(
    study: StudySnapshot, trials: Sequence[TrialSnapshot]
) -> tuple[CurvePoint, ...]:
    """The points of the curve, smallest budget first."""
    points: list[CurvePoint] = []
    for budget in device_budgets(study):
        front = front_within(study, trials, budget)
        gained = None
        now, before = fastest_tps(front), fastest_tps(points[-1].front) if points else None
        if now is not None and before is not None:
            gained = (now - before) / (budget - points[-1].budget_bytes) * GIGABYTE
        points.append(CurvePoint(budget, front, gained))
    return tuple(points)


def front_within(study: StudySnapshot, trials: Sequence[TrialSnapshot], budget_bytes: int) -> Front:
    """The front of the configs that run under this budget or a smaller one."""
    definition = study.definition
    fitting = [trial for trial in trials if budget_of(trial) <= budget_bytes]
    limit = definition["constraints"].get("min_quality")
    return likely_front(fitting, definition["objectives"], limit)


def fastest_tps(front: Front) -> float | None:
    """Tokens/s of the fastest member with a recommendable quality; None if there is none or speed
    is not an objective."""
    kept = [m for m in front.members if m.scores.get("quality", 1.0) >= front.knee_quality]
    speeds = [m.scores["output_tps"] for m in kept if "output_tps" in m.scores]
    return max(speeds, default=None)
