"""Applies other limits than a study's own to its measurements; nothing is run or written.

An unchanged limit keeps the study's own verdict; a changed one is evaluated again from figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tuner.definition.objectives import LIMITED, violations
from tuner.definition.study import Constraints
from tuner.store.points import Floats, Points
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

MEASURES = tuple(one.name for one in LIMITED.values())


def own_limits(study: StudySnapshot) -> Constraints:
    """The limits in the study's definition."""
    return Constraints.model_validate(study.definition["constraints"])


def judged(
    trials: Sequence[TrialSnapshot], own: Constraints, wanted: Constraints
) -> tuple[TrialSnapshot, ...]:
    """Returns the trials with their violations of these limits."""
    moved = _moved(own, wanted)
    return tuple(_judged(trial, wanted, moved) for trial in trials) if moved else tuple(trials)


def inside(points: Points, own: Constraints, wanted: Constraints) -> NDArray[np.bool_]:
    """Which points satisfy all of these limits, [N]."""
    kept = np.ones(len(points), dtype=bool)
    moved = _moved(own, wanted)
    for name, excess in points.violations.items():
        kept &= (_excess(points, name, wanted) if name in moved else excess) <= 0
    return kept


def _moved(own: Constraints, wanted: Constraints) -> frozenset[str]:
    return frozenset(
        name
        for name, one in LIMITED.items()
        if getattr(own, str(one.limit)) != getattr(wanted, str(one.limit))
    )


def _judged(trial: TrialSnapshot, wanted: Constraints, moved: frozenset[str]) -> TrialSnapshot:
    anew = violations(trial.figures, trial.scores.get("quality"), wanted)
    kept = {
        name: anew[name] if name in moved else excess for name, excess in trial.violations.items()
    }
    return replace(trial, violations=kept)


def _excess(points: Points, name: str, wanted: Constraints) -> Floats:
    one = LIMITED[name]
    if getattr(wanted, str(one.limit)) is None or one.name not in points.means:
        return np.zeros(len(points))
    limit = getattr(wanted, str(one.limit))
    excess: Floats = -one.sign * (points.means[one.name] - limit) / limit
    return np.nan_to_num(excess)
