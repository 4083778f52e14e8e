"""Evicts by the product of predicted probability and frequency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from engine.policy.context import PolicyContext
from engine.types import ExpertId

FLOOR = 0.01


class ProbabilityFrequencyEviction:
    """Evicts the smallest p * freq, that is the largest 1 / (p * freq) (fMoE, arXiv 2502.05370).

    p: the last predictor score of the resident, at least FLOOR, which is also used if there is
    none; freq: number of uses, kept after the expert left.
    """

    keeps = True
    expects = True

    def __init__(self) -> None:
        self._uses: Counter[ExpertId] = Counter()
        self._expected: dict[ExpertId, float] = {}
        self._values: dict[ExpertId, float] = {}

    def begin_sequences(self) -> None:
        """Does nothing: frequency outlives sequences."""

    def begin_layer(self, layer: int) -> None:
        """Does nothing: layers do not matter."""

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """Add one use."""
        self._uses[expert] += 1
        self._values[expert] = self._uses[expert] * self._expected.get(expert, FLOOR)

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Count the insertion as a use."""
        self.use(expert)

    def expect(self, expert: ExpertId, score: float) -> None:
        """Store the score."""
        self._expected[expert] = max(score, FLOOR)
        self._values[expert] = self._uses[expert] * self._expected[expert]

    def forget(self, expert: ExpertId) -> None:
        """Drop the score; the frequency is kept."""
        self._expected.pop(expert, None)

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """The candidate with the smallest product; ties go to the first."""
        return min(candidates, key=self._values.__getitem__)


def build(context: PolicyContext) -> ProbabilityFrequencyEviction:
    """The factory of engine.config.choices."""
    return ProbabilityFrequencyEviction()
