"""Probability times frequency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from engine.policy.context import PolicyContext
from engine.types import ExpertId

FLOOR = 0.01


class ProbabilityFrequencyEviction:
    """Evicts the smallest p * freq, that is the largest 1 / (p * freq) (fMoE, arXiv 2502.05370).

    p: the score that a predictor last gave the resident, at least FLOOR, which also stands where
    none was given; freq: uses so far, kept after the expert left.
    """

    keeps = True
    expects = True

    def __init__(self) -> None:
        self._uses: Counter[ExpertId] = Counter()
        self._expected: dict[ExpertId, float] = {}
        self._values: dict[ExpertId, float] = {}

    def begin_sequences(self) -> None:
        """Frequency outlives sequences."""

    def begin_layer(self, layer: int) -> None:
        """Layers do not matter."""

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """One more."""
        self._uses[expert] += 1
        self._values[expert] = self._uses[expert] * self._expected.get(expert, FLOOR)

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Counts as a use."""
        self.use(expert)

    def expect(self, expert: ExpertId, score: float) -> None:
        """Remember the score."""
        self._expected[expert] = max(score, FLOOR)
        self._values[expert] = self._uses[expert] * self._expected[expert]

    def forget(self, expert: ExpertId) -> None:
        """Its score goes, its frequency stays."""
        self._expected.pop(expert, None)

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """The candidate with the smallest product; among equals the first."""
        return min(candidates, key=self._values.__getitem__)


def build(context: PolicyContext) -> ProbabilityFrequencyEviction:
    """The factory of engine.config.choices."""
    return ProbabilityFrequencyEviction()
