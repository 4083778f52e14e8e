"""How much each setting matters: the share of an objective's variance between its choices.

The plain one-way analysis of variance over finished trials, by hand because it needs nothing but
means; with few trials it is a hint, not a proof.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from tuner.store.snapshots import TrialSnapshot

FEWEST_TRIALS = 4


def importances(
    trials: Sequence[TrialSnapshot], objectives: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By objective, by setting: 0..1; empty when fewer than FEWEST_TRIALS were measured."""
    measured = [t for t in trials if t.state == "COMPLETE" and set(objectives) <= set(t.scores)]
    if len(measured) < FEWEST_TRIALS:
        return {}
    names = list(measured[0].params)
    return {
        objective: {name: _between_share(measured, name, objective) for name in names}
        for objective in objectives
    }


def _between_share(trials: Sequence[TrialSnapshot], name: str, objective: str) -> float:
    groups: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        groups[str(trial.params.get(name))].append(trial.scores[objective])
    values = [value for group in groups.values() for value in group]
    mean = fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    between = sum(len(group) * (fmean(group) - mean) ** 2 for group in groups.values())
    return between / total if total > 0 else 0.0
