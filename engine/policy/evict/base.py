"""The eviction contract.

An Eviction keeps its own bookkeeping of one pool of slots and picks victims. It sees the logical
clock only: calls come in routing order at gate events, never in order of arrival.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from engine.types import ExpertId


class Eviction(Protocol):
    """Selects the victim among the evictable residents of one pool."""

    keeps: bool
    """False: no resident outlives the layer pass that demanded it."""

    expects: bool
    """Whether predictors' scores are used; False: expect() is never called."""

    def begin_sequences(self) -> None:
        """Called when new sequences begin."""

    def begin_layer(self, layer: int) -> None:
        """Called when the pass of this layer begins (any layer that shares the pool)."""

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """Called when a resident is demanded or predicted again (a prefetch counts as a use).

        high: it is wanted at the high precision.
        """

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Called when the expert was given a slot."""

    def expect(self, expert: ExpertId, score: float) -> None:
        """Called with a predictor's score in [0, 1] for this resident."""

    def forget(self, expert: ExpertId) -> None:
        """Called when the expert left its slot (it may come back)."""

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """One of `candidates` (never empty, all resident and unpinned) to evict for `incoming`."""
