"""Other limits than a study's own, applied to what it measured: nothing is run, nothing is written.

A limit that stays where the study set it judges as the study did; one that was moved judges anew,
by pooled means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.contract.report import Metric
from tuner.definition import objectives
from tuner.definition.study import Constraints
from tuner.store.points import Floats, Points
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

# of each constraint: the limit's field, what it is about, and which way is outside
_ABOUT = {
    "quality": ("min_quality", "quality", -1),
    "ttft": ("max_ttft_ms", "ttft_ms", 1),
    "tpot": ("max_tpot_ms", "tpot_ms", 1),
}
MEASURES = tuple(measure for _, measure, _ in _ABOUT.values())


def own_limits(study: StudySnapshot) -> Constraints:
    """Those that the study was asked with."""
    return Constraints.model_validate(study.definition["constraints"])


def judged(
    trials: Sequence[TrialSnapshot], own: Constraints, wanted: Constraints
) -> tuple[TrialSnapshot, ...]:
    """The trials with their violations of these limits."""
    moved = _moved(own, wanted)
    return tuple(_judged(trial, wanted, moved) for trial in trials) if moved else tuple(trials)


def inside(points: Points, own: Constraints, wanted: Constraints) -> NDArray[np.bool_]:
    """Which points keep all of these limits, [N]."""
    kept = np.ones(len(points), dtype=bool)
    moved = _moved(own, wanted)
    for name, excess in points.violations.items():
        kept &= (_excess(points, name, wanted) if name in moved else excess) <= 0
    return kept


def _moved(own: Constraints, wanted: Constraints) -> frozenset[str]:
    fields = {name: field for name, (field, _, _) in _ABOUT.items()}
    return frozenset(
        n for n, field in fields.items() if getattr(own, field) != getattr(wanted, field)
    )


def _judged(trial: TrialSnapshot, wanted: Constraints, moved: frozenset[str]) -> TrialSnapshot:
    metrics: Mapping[str, Metric] = trial.metrics
    anew = objectives.violations(metrics, trial.scores.get("quality"), wanted)
    kept = {
        name: anew[name] if name in moved else excess for name, excess in trial.violations.items()
    }
    return replace(trial, violations=kept)


def _excess(points: Points, name: str, wanted: Constraints) -> Floats:
    field, measure, sign = _ABOUT[name]
    limit = getattr(wanted, field)
    if limit is None or measure not in points.means:
        return np.zeros(len(points))
    excess: Floats = sign * (points.means[measure] - limit) / limit
    return np.nan_to_num(excess)
