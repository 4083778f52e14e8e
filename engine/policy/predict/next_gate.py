"""Predicts by gate look-ahead: later routers on the present gate input.

Residual streams change slowly, so the router of layer l+d applied to the gate input of layer l
picks much of what it will pick (Fate, arXiv 2502.12224; HOBBIT, 2411.01433, stacks several).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

from engine.policy.context import PolicyContext
from engine.policy.events import GateView, Need
from engine.policy.predict.base import Prediction
from engine.policy.predict.none import NoPredictor


class NextGatePredictor(NoPredictor):
    """Union over tokens of the top-(k + extra) experts of each of the next `depth` layers.

    The most often chosen come first; scores are fractions of tokens. layers: MoE layers of the
    model; experts_per_token: k.
    """

    needs: frozenset[Need] = frozenset({"top_experts"})

    def __init__(self, layers: int, experts_per_token: int, depth: int, extra: int) -> None:
        self._layers = layers
        self._count = experts_per_token + extra
        self._depth = depth

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> Iterator[Prediction]:
        """One prediction for each of the next layers that exists, lazily."""
        last = min(layer + self._depth, self._layers - 1)
        for target in range(layer + 1, last + 1):
            yield rank_by_count(target, view.top_experts(target, self._count))


def rank_by_count(layer: int, choices: Sequence[Sequence[int]]) -> Prediction:
    """Experts by number of tokens that chose them; ties by better rank, then by index."""
    if len(choices) == 1:
        return Prediction(layer, tuple(choices[0]), (1.0,) * len(choices[0]))
    counts = Counter(chain.from_iterable(choices))
    best_rank: dict[int, int] = {}
    columns = list(zip_longest(*choices, fillvalue=-1))
    for rank in reversed(range(len(columns))):  # so that the best rank is written last
        best_rank.update(dict.fromkeys(columns[rank], rank))
    experts = tuple(sorted(counts, key=lambda e: (-counts[e], best_rank[e], e)))
    return Prediction(layer, experts, tuple(counts[e] / len(choices) for e in experts))


def build(context: PolicyContext) -> NextGatePredictor:
    """The factory of engine.config.choices."""
    prefetch = context.config.prefetch
    return NextGatePredictor(context.layers, context.chosen, prefetch.depth, prefetch.extra_experts)
