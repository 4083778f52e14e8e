"""Least frequently used, with decaying counts."""

from __future__ import annotations

import math
from collections.abc import Collection

from engine.policy.context import PolicyContext
from engine.policy.options import number
from engine.types import ExpertId


class LfuEviction:
    """Evicts the expert with the smallest decayed number of uses.

    decay: the fraction of a count that remains from one pass of its layer to the next; 1 never
    forgets. Counts are kept after an expert leaves its slot (an expert that returns is not new) and
    across sequences.

    Lazy: the logarithm of a count falls by the same amount per pass for all experts of a layer, so
    a use stores the logarithm as of pass 0 and no update is needed in between.
    """

    keeps = True
    expects = False

    def __init__(self, decay: float) -> None:
        self._fall = -math.log(decay)
        self._passes: dict[int, int] = {}
        self._keys: dict[ExpertId, float] = {}

    def begin_sequences(self) -> None:
        """Does nothing: counts outlive sequences."""

    def begin_layer(self, layer: int) -> None:
        """Count one pass of this layer."""
        self._passes[layer] = self._passes.get(layer, 0) + 1

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """Add one to the decayed count."""
        age = self._passes.get(expert.layer, 0) * self._fall
        count = math.exp(self._keys.get(expert, -math.inf) - age) + 1.0
        self._keys[expert] = math.log(count) + age

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Count the insertion as a use."""
        self.use(expert)

    def expect(self, expert: ExpertId, score: float) -> None:
        """Never called."""

    def forget(self, expert: ExpertId) -> None:
        """Does nothing: the count is kept."""

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """The candidate with the smallest current count; ties go to the first."""
        if len(self._passes) <= 1:
            return min(candidates, key=self._keys.__getitem__)
        age = {layer: passes * self._fall for layer, passes in self._passes.items()}
        return min(candidates, key=lambda e: self._keys[e] - age.get(e.layer, 0.0))


def build(context: PolicyContext) -> LfuEviction:
    """The factory of engine.config.choices."""
    decay = number(context.config.cache.options, "cache.options.decay", 0.9, 0.01, 1.0)
    return LfuEviction(decay)
