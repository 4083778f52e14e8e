"""Routing fingerprint: how a model's routers distribute their choices on a text.

Letters: L MoE layers, B bins. A fingerprint is [L, B]: the fraction of a layer's choices that falls
on the experts of each bin. Experts are folded into at most 16 bins (expert number modulo 16), so
that a few hundred tokens are enough and a row is small to store. Values only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 16
Fingerprint = list[list[float]]


class RoutingCounts:
    """Counts choices by layer and bin."""

    def __init__(self, layers: int, experts: int) -> None:
        self._bins = min(BINS, experts)
        self._counts: NDArray[np.int64] = np.zeros((layers, self._bins), np.int64)

    def add(self, layer: int, experts: Iterable[int]) -> None:
        """Count the choices of one layer."""
        chosen = np.fromiter(experts, np.int64) % self._bins
        self._counts[layer] += np.bincount(chosen, minlength=self._bins)

    def add_table(self, experts: NDArray[np.int16]) -> None:
        """Count a trace's choices [N, L, K], -1 where a router chose fewer."""
        for layer in range(self._counts.shape[0]):
            row = experts[:, layer].reshape(-1)
            self.add(layer, row[row >= 0])

    def take(self) -> Fingerprint | None:
        """The fingerprint of the counts since the last call, None if some layer has none."""
        counts, self._counts = self._counts, np.zeros_like(self._counts)
        totals = counts.sum(1, keepdims=True)
        if not totals.all():
            return None
        fractions: Fingerprint = np.round(counts / totals, 4).tolist()
        return fractions


def distance(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float | None:
    """Distance of two fingerprints: the total variation of a layer's fractions, averaged over
    the layers, from 0 (equal) to 1. None if they are of different models."""
    if [len(row) for row in one] != [len(row) for row in other] or not one:
        return None
    layers = (
        sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 2
        for x, y in zip(one, other, strict=True)
    )
    return sum(layers) / len(one)
