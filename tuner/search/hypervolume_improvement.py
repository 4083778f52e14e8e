"""Hypervolume improvement of many points over a front at once.

Everything is maximised and measured from a reference point at 0. Three objectives are cut into
slices along the last one; in each, the front bounds a union of boxes. Fewer objectives are padded
with ones. Exact; Yang et al. (Multi-Objective Bayesian Global Optimization, 2019) use the same
decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class BoxDecomposition:
    """A front's box decomposition. gains: the front's points as gains over the reference, [M, d], d
    <= 3."""

    def __init__(self, gains: Floats) -> None:
        padded = _padded(gains)
        padded = padded[(padded > 0).all(axis=1)]
        levels = np.unique(padded[:, 2])
        self._floors = np.concatenate([[0.0], levels])
        self._stairs = [_stairs(padded[padded[:, 2] > floor][:, :2]) for floor in self._floors]

    def improvement(self, points: Floats) -> Floats:
        """The volume that each point [..., d] would add, [...]."""
        shape = points.shape[:-1]
        flat = np.maximum(_padded(points.reshape(-1, points.shape[-1])), 0.0)
        x, y, z = flat[:, 0], flat[:, 1], flat[:, 2]
        tops = [*self._floors[1:], np.inf]
        total = np.zeros(len(flat))
        for floor, top, stairs in zip(self._floors, tops, self._stairs, strict=True):
            thickness = np.clip(np.minimum(z, top) - floor, 0.0, None)
            if not thickness.any():
                continue
            area = np.zeros(len(flat))
            for left, right, height in stairs:
                width = np.clip(np.minimum(x, right) - left, 0.0, None)
                area += width * np.clip(y - height, 0.0, None)
            total += thickness * area
        return total.reshape(shape)


def _stairs(points: Floats) -> list[tuple[float, float, float]]:
    """(left, right, height) of each step of the area that these points cover; past the last, 0."""
    steps: list[tuple[float, float, float]] = []
    left = 0.0
    for x, y in _corners(points):
        steps.append((left, x, y))
        left = x
    return [*steps, (left, np.inf, 0.0)]


def _corners(points: Floats) -> Sequence[tuple[float, float]]:
    """The non-dominated points by ascending x and descending y."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(map(tuple, points.tolist()), reverse=True):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]


def _padded(points: Floats) -> Floats:
    missing = 3 - points.shape[1]
    return np.hstack([points, np.ones((len(points), missing))]) if missing else points
