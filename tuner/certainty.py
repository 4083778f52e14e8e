"""How sure it is that a trial belongs on the front, given how its repeats scatter.

Each configuration's means are drawn again and again from their standard errors (speeds of one
configuration rise and fall together, as they come from the same repeats); the share of draws in
which nothing beats it is its probability. A quality has no scatter here: it is judged once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tuner import pareto
from tuner.domination import pooled_deviation
from tuner.front import Front
from tuner.search.improvement import non_dominated
from tuner.store.snapshots import TrialSnapshot

DRAWS = 400
REACH = 3.0  # standard errors: what is farther off is not drawn
LIKELY = 0.05  # trials beside the front that are as likely are worth naming


def on_front(front: Front, seed: int = 0) -> dict[int, float]:
    """Probability of each measured, feasible trial that is within reach, by its number."""
    names = front.objectives
    trials = _distinct(front, names)
    if not trials:
        return {}
    signs = np.array([pareto.SIGNS[name] for name in names], dtype=float)
    means = np.array([[trial.scores[name] for name in names] for trial in trials]) * signs
    scatter = {name: pooled_deviation(front.trials, name) for name in names}
    errors = np.array([[_error(trial, name, scatter[name]) for name in names] for trial in trials])
    best, worst = means + REACH * errors, means - REACH * errors
    near = [
        index
        for index in range(len(trials))
        if not ((worst >= best[index]).all(axis=1) & (worst > best[index]).any(axis=1)).any()
    ]
    dice = np.random.default_rng(seed)
    counts = np.zeros(len(near))
    for _ in range(DRAWS):
        drawn = dice.standard_normal((len(near), 1))
        counts += non_dominated(means[near] + drawn * errors[near])
    return {
        trials[index].number: float(count / DRAWS)
        for index, count in zip(near, counts, strict=True)
    }


def near_front(front: Front, probabilities: dict[int, float]) -> list[tuple[int, float]]:
    """Trials beside the front that may well belong on it, the likeliest first."""
    members = {member.number for member in front.members}
    others = [(n, p) for n, p in probabilities.items() if n not in members and p >= LIKELY]
    return sorted(others, key=lambda pair: -pair[1])


def _distinct(front: Front, names: Sequence[str]) -> list[TrialSnapshot]:
    """One trial a configuration; the front's members among them."""
    found: dict[int, TrialSnapshot] = {}
    for trial in [*front.members, *front.trials]:
        complete = trial.feasible and all(name in trial.scores for name in names)
        if complete and trial.configuration_id is not None:
            found.setdefault(trial.configuration_id, trial)
    return list(found.values())


def _error(trial: TrialSnapshot, name: str, deviation: float) -> float:
    """Standard error of a mean. deviation: relative, of one repeat in this study."""
    metric = trial.metrics.get(name)
    if metric is None:
        return 0.0
    return abs(metric.value) * deviation / math.sqrt(metric.n)
