"""Pareto dominance: non-dominated points, hypervolume and knee.

Points are tuples with one number per objective; `signs` gives its direction (+1 more is better, -1
less is better). Non-dominated sets and hypervolumes are moocore's (exact, dimension sweep).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = Sequence[float]
Floats = NDArray[np.float64]
LEAST_SPAN = 0.1  # of an objective's best value


def dominates(a: Vector, b: Vector, signs: Sequence[int]) -> bool:
    """Whether a is at least as good as b everywhere and better somewhere."""
    pairs = [(s * x, s * y) for x, y, s in zip(a, b, signs, strict=True)]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def front(points: Sequence[Vector], signs: Sequence[int]) -> list[int]:
    """Indices of the non-dominated points, in order; of equal points only the first."""
    if not len(points):
        return []
    kept: NDArray[np.bool_] = _moocore().is_nondominated(_gains(points, signs), maximise=True)
    return np.flatnonzero(kept).tolist()


def non_dominated(gains: Floats) -> NDArray[np.bool_]:
    """Which points [n, d] no other point dominates; more is better. Equal points are kept or
    dropped together."""
    if not len(gains):
        return np.zeros(0, dtype=bool)
    kept: NDArray[np.bool_] = _moocore().is_nondominated(gains, maximise=True, keep_weakly=True)
    return kept


def hypervolume(points: Sequence[Vector], reference: Vector, signs: Sequence[int]) -> float:
    """The volume between the reference point and the points better than it; exact."""
    if not len(points):
        return 0.0
    bound = _gains([reference], signs)[0]
    return float(_moocore().hypervolume(_gains(points, signs), ref=bound, maximise=True))


def knee(points: Sequence[Vector], signs: Sequence[int]) -> int:
    """Index of the knee: the point nearest to the ideal after scaling every objective to 0..1, by
    the span of the points, or by LEAST_SPAN of its best value if that is more: a thousandth of
    quality does not weigh as much as twice the speed because it is all that the points differ by.

    points must not be empty. An objective in which all points are equal is ignored.
    """
    best = [max(s * p[k] for p in points) for k, s in enumerate(signs)]
    worst = [min(s * p[k] for p in points) for k, s in enumerate(signs)]

    def distance(point: Vector) -> float:
        total = 0.0
        for k, s in enumerate(signs):
            span = max(best[k] - worst[k], LEAST_SPAN * abs(best[k]))
            total += ((best[k] - s * point[k]) / span) ** 2 if span > 0 else 0.0
        return total

    return min(range(len(points)), key=lambda i: distance(points[i]))


def _gains(points: Sequence[Vector], signs: Sequence[int]) -> Floats:
    """Points as [n, d] with signs applied, so that more is better."""
    found: Floats = np.asarray(points, dtype=float) * np.asarray(signs, dtype=float)
    return found


def _moocore() -> Any:
    """Imported on first use: it takes 0.15 s, which commands that rank nothing need not pay."""
    import moocore

    return moocore
