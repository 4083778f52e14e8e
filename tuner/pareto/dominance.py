"""The front: what no other point beats in everything; its hypervolume and its knee.

Pure arithmetic. Points are tuples with one number an objective; `signs` says which way is better
(+1 more, -1 less), so that everything inside is maximised.
"""

from __future__ import annotations

from collections.abc import Sequence

Vector = Sequence[float]


def dominates(a: Vector, b: Vector, signs: Sequence[int]) -> bool:
    """Whether a is nowhere worse than b and somewhere better."""
    pairs = [(s * x, s * y) for x, y, s in zip(a, b, signs, strict=True)]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def front(points: Sequence[Vector], signs: Sequence[int]) -> list[int]:
    """Indices of the non-dominated points, in order; of equal points only the first."""
    gains = [tuple(s * x for s, x in zip(signs, point, strict=True)) for point in points]
    kept: list[int] = []
    # whatever beats a point comes before it, so that the points kept so far decide
    for i in sorted(range(len(points)), key=lambda i: gains[i], reverse=True):
        if not any(all(a >= b for a, b in zip(gains[j], gains[i], strict=True)) for j in kept):
            kept.append(i)
    return sorted(kept)


def hypervolume(points: Sequence[Vector], reference: Vector, signs: Sequence[int]) -> float:
    """The volume between the reference point and the points better than it; exact, by slices."""
    gains = [
        tuple(s * (x - r) for x, r, s in zip(point, reference, signs, strict=True))
        for point in points
    ]
    return _volume([gain for gain in gains if all(g > 0 for g in gain)])


def knee(points: Sequence[Vector], signs: Sequence[int]) -> int:
    """Index of the best compromise: nearest to the ideal after scaling every objective to 0..1.

    points must not be empty. An objective in which all are equal does not count.
    """
    best = [max(s * p[k] for p in points) for k, s in enumerate(signs)]
    worst = [min(s * p[k] for p in points) for k, s in enumerate(signs)]

    def distance(point: Vector) -> float:
        total = 0.0
        for k, s in enumerate(signs):
            span = best[k] - worst[k]
            total += ((best[k] - s * point[k]) / span) ** 2 if span > 0 else 0.0
        return total

    return min(range(len(points)), key=lambda i: distance(points[i]))


def _volume(gains: list[tuple[float, ...]]) -> float:
    """Slices along the last axis, each the volume of what reaches it in one dimension less."""
    if not gains:
        return 0.0
    if len(gains[0]) == 1:
        return max(gain[0] for gain in gains)
    total, floor = 0.0, 0.0
    for level in sorted({gain[-1] for gain in gains}):
        total += (level - floor) * _volume([gain[:-1] for gain in gains if gain[-1] >= level])
        floor = level
    return total
