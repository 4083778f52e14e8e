"""The probability that a trial belongs on the front, and the front that follows from it.

Each configuration's means are drawn again and again from their standard errors (speeds of one
configuration rise and fall together, as they come from the same repeats); the fraction of draws in
which nothing beats it is its probability. A quality has no scatter here: it is judged once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tuner.definition.objectives import SIGNS
from tuner.pareto.front import Front, build_front, by_objective
from tuner.pareto.noise import mean_error_of, pooled_deviation
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

if TYPE_CHECKING:
    from tuner.pareto.front import Front

Floats = NDArray[np.float64]

DRAWS = 400
REACH = 3.0  # standard errors: what is farther off is not drawn
MOST_DRAWN = 60  # the nearest; a crowd of equals says no more
LIKELY = 0.05  # trials beside the front that are named, from this probability on
EVEN = 0.5


@dataclass(frozen=True)
class Draws:
    """trials: those within reach of the front; beats [S, n, n]: in draw s trial j beats trial i."""

    trials: tuple[TrialSnapshot, ...]
    beats: NDArray[np.bool_]

    def probabilities(self) -> Floats:
        """Of standing on the front, [n]."""
        found: Floats = 1.0 - self.beats.any(axis=2).mean(axis=0)
        return found

    def beaten(self, index: int, others: Sequence[int]) -> float:
        """In which fraction of draws one of `others` beats this one."""
        if not others:
            return 0.0
        return float(self.beats[:, index, list(others)].any(axis=1).mean())


def draws_of(front: Front, seed: int = 0) -> Draws:
    """From a front of means and all trials beside it."""
    names = front.objectives
    trials = _distinct(front, names)
    if not trials:
        return Draws((), np.zeros((DRAWS, 0, 0), dtype=bool))
    signs = np.array([SIGNS[name] for name in names], dtype=float)
    means = np.array([[trial.scores[name] for name in names] for trial in trials]) * signs
    errors = _errors(front, trials)
    near = _near(means, errors, len(front.members))
    rng = np.random.default_rng(seed)
    scatter = rng.standard_normal((DRAWS, len(near), 1))
    values = means[near] + scatter * errors[near]  # [S, n, d]
    return Draws(tuple(trials[index] for index in near), _beats(values))


def on_front(front: Front, seed: int = 0) -> dict[int, float]:
    """Probability of each measured, feasible trial that is within reach, by its number."""
    draws = draws_of(front, seed)
    pairs = zip(draws.trials, draws.probabilities(), strict=True)
    return {trial.number: float(fraction) for trial, fraction in pairs}


def likely_members(front: Front, seed: int = 0) -> tuple[TrialSnapshot, ...]:
    """What stands on the front more likely than not, and of what the means put there whatever these
    do not beat more likely than not: of several that noise cannot tell apart, one at least stays.
    """
    draws = draws_of(front, seed)
    fraction = draws.probabilities()
    means = {member.id for member in front.members}
    chosen: list[int] = []
    for index in np.argsort(-fraction, kind="stable").tolist():
        by_means = draws.trials[index].id in means
        if fraction[index] >= EVEN or (by_means and draws.beaten(index, chosen) < EVEN):
            chosen.append(index)
    return tuple(draws.trials[index] for index in chosen)


def near_front(front: Front, probabilities: dict[int, float]) -> list[tuple[int, float]]:
    """Trials beside the front that may well belong on it, the likeliest first."""
    members = {member.number for member in front.members}
    others = [(n, p) for n, p in probabilities.items() if n not in members and p >= LIKELY]
    return sorted(others, key=lambda pair: -pair[1])


def _distinct(front: Front, names: Sequence[str]) -> list[TrialSnapshot]:
    """One trial a configuration; the front's members first."""
    found: dict[int, TrialSnapshot] = {}
    for trial in [*front.members, *front.trials]:
        complete = trial.feasible and all(name in trial.scores for name in names)
        if complete and trial.configuration_id is not None:
            found.setdefault(trial.configuration_id, trial)
    return list(found.values())


def _errors(front: Front, trials: Sequence[TrialSnapshot]) -> Floats:
    """Standard errors of means, [n, d], by the scatter that repeats of this study have, and that
    starts of an engine commonly have."""
    columns = []
    for name in front.objectives:
        deviation = pooled_deviation(front.trials, name)
        columns.append([
            abs(trial.metrics[name].value) * mean_error_of(trial, name, deviation)
            if name in trial.metrics else 0.0
            for trial in trials
        ])  # fmt: skip
    return np.array(columns, dtype=float).T


def _near(means: Floats, errors: Floats, members: int) -> list[int]:
    """Indices of the first `members` and of what these do not beat by REACH errors in everything,
    MOST_DRAWN in all where there are more, the nearest."""
    lags = np.full(len(means), -np.inf)
    for mean, error in zip(means[:members], errors[:members], strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            behind = (mean - means) / (error + errors)
        behind[np.isnan(behind)] = np.inf  # equal, and neither scatters
        lag = behind.min(axis=1)
        lag[(means == mean).all(axis=1)] = -np.inf  # itself, and what equals it
        lags = np.maximum(lags, lag)
    lags[:members] = -np.inf  # none of them is left out, however many there are
    order = np.argsort(lags, kind="stable")[: max(MOST_DRAWN, members)]
    return [int(index) for index in order if lags[index] < REACH]


def _beats(values: Floats) -> NDArray[np.bool_]:
    """[S, n, d] -> [S, n, n]: whether the second of a pair beats the first."""
    size = values.shape[1]
    beats = np.zeros((len(values), size, size), dtype=bool)
    for number, drawn in enumerate(values):
        first, second = drawn[:, None, :], drawn[None, :, :]
        beats[number] = (second >= first).all(axis=2) & (second > first).any(axis=2)
    return beats


def front_of(study: StudySnapshot, trials: Sequence[TrialSnapshot]) -> Front:
    """The front of a stored study, under its own objectives and limits, given its noise."""
    definition = study.definition
    limit = definition["constraints"].get("min_quality")
    return likely_front(trials, definition["objectives"], limit)


def likely_front(
    trials: Sequence[TrialSnapshot], objectives: Sequence[str], min_quality: float | None = None
) -> Front:
    """As build_front, of what is more likely than not to stand on it, given how repeats scatter."""
    front = build_front(trials, objectives, min_quality)
    return replace(front, members=by_objective(likely_members(front), front.objectives[0]))
