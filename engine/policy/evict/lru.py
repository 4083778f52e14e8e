"""Least recently used; and its degenerate form that keeps nothing."""

from __future__ import annotations

from collections.abc import Collection

from engine.policy.context import PolicyContext
from engine.types import ExpertId


class LruEviction:
    """Evicts the expert whose last use is the oldest."""

    keeps = True
    expects = False

    def __init__(self) -> None:
        self._clock = 0
        self._last_use: dict[ExpertId, int] = {}

    def begin_sequences(self) -> None:
        """Does nothing: recency outlives sequences."""

    def begin_layer(self, layer: int) -> None:
        """Does nothing: layers do not matter."""

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """Stamp the expert with the next tick."""
        self._clock += 1
        self._last_use[expert] = self._clock

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Count the insertion as a use."""
        self._clock += 1
        self._last_use[expert] = self._clock

    def expect(self, expert: ExpertId, score: float) -> None:
        """Never called."""

    def forget(self, expert: ExpertId) -> None:
        """Drop its stamp."""
        self._last_use.pop(expert, None)

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """The candidate with the oldest stamp."""
        return min(candidates, key=self._last_use.__getitem__)


class NoCacheEviction(LruEviction):
    """Load on demand: every expert is dropped after the layer that used it."""

    keeps = False


def build(context: PolicyContext) -> LruEviction:
    """The factory of engine.config.choices."""
    return LruEviction()


def build_none(context: PolicyContext) -> NoCacheEviction:
    """The factory of engine.config.choices."""
    return NoCacheEviction()
