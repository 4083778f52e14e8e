"""Predict by applying later routers to the present gate input.

Residual streams change slowly, so the router of layer l+d applied to the gate input of layer l
picks much of what it will pick (Fate, arXiv 2502.12224; HOBBIT, 2411.01433, stacks several).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engine.policy.predict.base import Prediction, Scorer


class NextGatePredictor:
    """Union over tokens of the top-(k + extra) experts of each of the next `depth` layers, the
    most often chosen first.

    layers: MoE layers of the model; experts_per_token: k.
    """

    needs_gate_input = True

    def __init__(self, layers: int, experts_per_token: int, depth: int, extra: int) -> None:
        self._layers = layers
        self._count = experts_per_token + extra
        self._depth = depth

    def predict(self, layer: int, scorer: Scorer) -> list[Prediction]:
        """One prediction for each of the next layers that exists."""
        last = min(layer + self._depth, self._layers - 1)
        return [
            Prediction(target, rank_by_count(scorer.top_experts(target, self._count)))
            for target in range(layer + 1, last + 1)
        ]

    def observe(self, layer: int, experts: Sequence[Sequence[int]]) -> None:
        """Keeps no statistics."""


def rank_by_count(choices: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Experts by how many tokens chose them; ties by better rank, then by index."""
    counts = Counter(expert for choice in choices for expert in choice)
    best_rank: dict[int, int] = {}
    for choice in choices:
        for rank, expert in enumerate(choice):
            best_rank[expert] = min(rank, best_rank.get(expert, rank))
    return tuple(sorted(counts, key=lambda e: (-counts[e], best_rank[e], e)))
