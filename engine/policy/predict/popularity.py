"""Predicts the experts that a layer chooses most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from engine.policy.context import PolicyContext
from engine.policy.events import PassStart, Routing
from engine.policy.options import number
from engine.policy.predict.base import Prediction
from engine.policy.predict.history import learn
from engine.policy.predict.none import NoPredictor

_TOO_LARGE = 1e100


class PopularityPredictor(NoPredictor):
    """The most chosen k + extra experts of each of the next `depth` layers.

    Scores are fractions of tokens. Exponentially weighted counts of constant size, updated by every
    pass (inspired by RDE, arXiv 2205.03761): `prefetch.options.decay` is the fraction of a token's
    weight that remains from one pass to the next; 1 weighs all tokens equally. The weight of new
    tokens grows instead of the old counts decaying, so that a pass updates only what it chose.
    """

    def __init__(self, context: PolicyContext) -> None:
        prefetch = context.config.prefetch
        self._layers, self._experts = context.layers, context.experts
        self._depth = prefetch.depth
        self._count = min(context.chosen + prefetch.extra_experts, context.experts)
        self._decay = number(prefetch.options, "prefetch.options.decay", 0.99, 0.01, 1.0)
        self._weight = 1.0
        self._counts = [[0.0] * self._experts for _ in range(self._layers)]
        self._tokens = [0.0] * self._layers
        if context.history is not None:
            learn(self, context.history, context.layers, context.experts)

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Predict the first layers."""
        return self._predict(range(min(self._depth, self._layers)))

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Count the chosen experts."""
        weight, counts = self._weight, self._counts[layer]
        self._tokens[layer] += weight * len(routing.experts)
        if len(routing.experts) == 1:
            for expert in routing.experts[0]:
                counts[expert] += weight
            return
        for expert, tokens in Counter(chain.from_iterable(routing.experts)).items():
            counts[expert] += weight * tokens

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """Predict the next layers of this pass."""
        return self._predict(range(layer + 1, min(layer + self._depth + 1, self._layers)))

    def end_pass(self) -> None:
        """Reduce the relative weight of past tokens."""
        self._weight /= self._decay
        if self._weight > _TOO_LARGE:
            scale = 1.0 / self._weight
            self._counts = [[count * scale for count in layer] for layer in self._counts]
            self._tokens = [tokens * scale for tokens in self._tokens]
            self._weight = 1.0

    def _predict(self, layers: range) -> Iterator[Prediction]:
        for layer in layers:
            counts = self._counts[layer]
            ranked = sorted(range(self._experts), key=counts.__getitem__, reverse=True)
            experts = tuple(e for e in ranked[: self._count] if counts[e] > 0)
            scale = 1.0 / (self._tokens[layer] or 1.0)
            yield Prediction(layer, experts, tuple(counts[e] * scale for e in experts))
