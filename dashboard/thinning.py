"""Thinning: chooses which of many trials a page shows: the front, near-front and newest trials.

In: all measured trials as columns. Out: the numbers of a few of them. The front of these few equals
the front of all, so nothing else needs to be read in full.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tuner.definition.objectives import SIGNS
from tuner.pareto.dominance import non_dominated
from tuner.pareto.noise import FEWEST_REPEATS, FIRST_DEVIATION, LEAST_DEVIATION, START_DEVIATION
from tuner.pareto.probability import REACH
from tuner.store.points import Floats, Points

MOST = 200  # beyond this, a chart is unreadable and a browser slow


def thinned(
    points: Points,
    objectives: Sequence[str],
    kept: NDArray[np.bool_],
    most: int = MOST,
) -> tuple[int, ...]:
    """Returns the numbers of the trials to show, ascending.

    kept: which points are within the limits, [N]; most: the limit on trials off the front; all
    members of the front are shown.
    """
    if len(points) <= most:
        return tuple(int(number) for number in points.numbers)
    signs = np.array([SIGNS[name] for name in objectives], dtype=float)
    gains = np.column_stack([points.means[name] for name in objectives]) * signs  # [N, d]
    feasible = np.flatnonzero(kept & np.isfinite(gains).all(axis=1))
    front = feasible[non_dominated(gains[feasible])]
    near = feasible[_within_noise(points, objectives, gains, feasible)]
    order = np.concatenate([front, near[::-1], np.arange(len(points))[::-1]])
    chosen = dict.fromkeys(order.tolist())
    capacity = max(most, len(front))
    return tuple(sorted(int(points.numbers[index]) for index in list(chosen)[:capacity]))


def _within_noise(
    points: Points, objectives: Sequence[str], gains: Floats, feasible: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Returns which feasible points may be on the front: the vectorised rule of
    probability.on_front."""
    errors = np.column_stack([_errors(points, name) for name in objectives])[feasible]
    best, worst = gains[feasible] + REACH * errors, gains[feasible] - REACH * errors
    near = np.ones(len(feasible), dtype=bool)
    for index in np.flatnonzero(non_dominated(worst)):
        near &= ~((worst[index] >= best).all(axis=1) & (worst[index] > best).any(axis=1))
    return near


def _errors(points: Points, name: str) -> Floats:
    """Standard errors of the means, as if all repeats shared a process start: a lower bound."""
    counts, deviations = points.counts[name], points.deviations[name]
    several = np.isfinite(deviations)
    first = np.unique(points.configurations, return_index=True)[1]
    chosen = first[several[first]]
    deviation = FIRST_DEVIATION
    if counts[chosen].sum() >= FEWEST_REPEATS:
        degrees = counts[chosen] - 1
        pooled = np.sqrt((deviations[chosen] ** 2 * degrees).sum() / degrees.sum())
        deviation = max(LEAST_DEVIATION, float(pooled))
    relative = np.hypot(deviation / np.sqrt(np.maximum(counts, 1)), START_DEVIATION)
    return np.where(counts > 0, np.abs(points.means[name]) * relative, 0.0)
