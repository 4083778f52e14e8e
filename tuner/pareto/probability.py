"""The probability that a trial belongs on the front, and the front that follows from it.

Each configuration's means are sampled repeatedly from their standard errors (the speeds of one
configuration rise and fall together, since they come from the same repeats); its probability is the
fraction of draws in which nothing dominates it. Quality has no scatter here: it is evaluated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuner.definition.objectives import SIGNS
from tuner.pareto.front import Front, build_front, by_objective
from tuner.pareto.noise import mean_error_of, pooled_deviation
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

Floats = NDArray[np.float64]

DRAWS = 400
REACH = 3.0  # standard errors: trials farther off are left out
MOST_DRAWN = 60  # the nearest; a crowd of equals adds nothing
LIKELY = 0.05  # probability from which on trials beside the front are listed
EVEN = 0.5


@dataclass(frozen=True)
class Draws:
    """Samples of the front. trials: those within reach of it; beats [S, n, n]: in draw s trial j
    dominates trial i."""

    trials: tuple[TrialSnapshot, ...]
    beats: NDArray[np.bool_]

    def probabilities(self) -> Floats:
        """The probability of being on the front, [n]."""
        found: Floats = 1.0 - self.beats.any(axis=2).mean(axis=0)
        return found

    def beaten(self, index: int, others: Sequence[int]) -> float:
        """The fraction of draws in which one of `others` dominates this trial."""
        if not others:
            return 0.0
        return float(self.beats[:, index, list(others)].any(axis=1).mean())


def draws_of(front: Front, seed: int = 0) -> Draws:
    """Draws samples for a front of means and all trials beside it."""
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
    """The probability of each measured, feasible trial within reach, by its number."""
    draws = draws_of(front, seed)
    pairs = zip(draws.trials, draws.probabilities(), strict=True)
    return {trial.number: float(fraction) for trial, fraction in pairs}


def likely_members(front: Front, seed: int = 0) -> tuple[TrialSnapshot, ...]:
    """The trials that are on the front more likely than not, and the members by means that none
    of these dominates more likely than not: of several that noise cannot separate, at least one
    stays."""
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
    """Trials beside the front that may well belong on it, likeliest first."""
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
    """Standard errors of means, [n, d], from the scatter of this study's repeats and the usual
    scatter of engine starts."""
    columns = []
    for name in front.objectives:
        deviation = pooled_deviation(front.trials, name)
        columns.append([
            abs(trial.figures[name].value) * mean_error_of(trial, name, deviation)
            if name in trial.figures else 0.0
            for trial in trials
        ])  # fmt: skip
    return np.array(columns, dtype=float).T


def _near(means: Floats, errors: Floats, members: int) -> list[int]:
    """Indices of the first `members` and of the trials that they do not dominate by REACH errors,
    at most MOST_DRAWN in all, nearest first."""
    lags = np.full(len(means), -np.inf)
    for mean, error in zip(means[:members], errors[:members], strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            behind = (mean - means) / (error + errors)
        behind[np.isnan(behind)] = np.inf  # equal, and neither scatters
        lag = behind.min(axis=1)
        lag[(means == mean).all(axis=1)] = -np.inf  # itself and its equals
        lags = np.maximum(lags, lag)
    lags[:members] = -np.inf  # members are never left out, however many there are
    order = np.argsort(lags, kind="stable")[: max(MOST_DRAWN, members)]
    return [int(index) for index in order if lags[index] < REACH]


def _beats(values: Floats) -> NDArray[np.bool_]:
    """[S, n, d] -> [S, n, n]: whether the second of a pair dominates the first."""
    size = values.shape[1]
    beats = np.zeros((len(values), size, size), dtype=bool)
    for number, drawn in enumerate(values):
        first, second = drawn[:, None, :], drawn[None, :, :]
        beats[number] = (second >= first).all(axis=2) & (second > first).any(axis=2)
    return beats


def front_of(study: StudySnapshot, trials: Sequence[TrialSnapshot]) -> Front:
    """The front of a stored study under its own objectives and limits, given its noise."""
    definition = study.definition
    limit = definition["constraints"].get("min_quality")
    return likely_front(trials, definition["objectives"], limit)


def likely_front(
    trials: Sequence[TrialSnapshot], objectives: Sequence[str], min_quality: float | None = None
) -> Front:
    """As build_front, with the trials that are more likely than not on the front, given the
    noise."""
    front = build_front(trials, objectives, min_quality)
    return replace(front, members=by_objective(likely_members(front), front.objectives[0]))
