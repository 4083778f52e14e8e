"""Belady's rule: evict the farthest next use. An upper bound, for runs with recorded routing."""

from __future__ import annotations

from collections.abc import Collection

from engine.policy.context import PolicyContext
from engine.policy.evict.lru import LruEviction
from engine.policy.future import Future
from engine.types import ExpertId


class BeladyEviction(LruEviction):
    """Evicts the expert whose next demand is farthest ahead (Belady, 1966; ScratchPipe, arXiv
    2205.04702, does so if the next accesses are known). If no future is known: LRU."""

    def __init__(self, future: Future) -> None:
        super().__init__()
        self._future = future

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """The candidate with the farthest next demand; ties go to the least recent."""
        if not self._future.known:
            return super().victim(candidates, incoming)
        next_use, last_use = self._future.next_use, self._last_use
        return max(candidates, key=lambda e: (next_use(e), -last_use.get(e, 0)))


def build(context: PolicyContext) -> BeladyEviction:
    """The factory of engine.config.choices."""
    return BeladyEviction(context.future)
