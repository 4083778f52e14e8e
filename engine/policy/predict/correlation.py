"""Predicts the experts that usually follow those of the present layer.

Letters: L layers, E experts, P distinct experts of the present layer, K chosen, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from engine.policy.context import PolicyContext
from engine.policy.events import PassStart, Routing
from engine.policy.predict.base import Prediction
from engine.policy.predict.history import learn
from engine.policy.predict.none import NoPredictor

_Rows = Sequence[Sequence[int]]


class CorrelationPredictor(NoPredictor):
    """Counts expert pairs of neighbouring layers (Klotski, arXiv 2502.06888).

    A table counts[layer][previous][current] of path length 1. Every expert of the present layer
    votes, with its number of tokens over all micro-batches, for its top-k successors in the next
    layer; the k + extra experts with most votes are predicted. Layer 0 is predicted by popularity
    when a pass begins; for depth beyond 1 predicted experts vote, with their votes as tokens.
    Scores are fractions of the votes cast. Learns after each pass.

    The table holds counts * E - index, so that no two entries of a row are equal and the lower
    index wins a tie.
    """

    def __init__(self, context: PolicyContext) -> None:
        self._layers, self._experts = context.layers, context.experts
        self._depth = context.config.prefetch.depth
        self._successors = context.chosen
        self._count = context.chosen + context.config.prefetch.extra_experts
        shape = (self._layers, self._experts, self._experts)
        self._keys = np.broadcast_to(-np.arange(self._experts), shape).copy()  # [L, E, E]
        self._first = [0] * self._experts
        self._first_tokens = 0
        self._layer = -1
        self._tokens: Counter[int] = Counter()
        self._seen: dict[int, list[_Rows]] = {}
        if context.history is not None:
            learn(self, context.history, context.layers, context.experts)

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Predict layer 0 by popularity."""
        self._seen = {}
        if not self._depth or not self._first_tokens:
            return ()
        first = self._first
        ranked = sorted(range(self._experts), key=first.__getitem__, reverse=True)
        experts = tuple(e for e in ranked[: self._count] if first[e])
        return (Prediction(0, experts, tuple(first[e] / self._first_tokens for e in experts)),)

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Count the tokens of the layer; keep the routing for learning."""
        if layer != self._layer:
            self._layer = layer
            self._tokens = Counter()
        self._tokens.update(chain.from_iterable(routing.experts))
        self._seen.setdefault(micro_batch, []).append(routing.experts)

    def layer_routed(self, layer: int) -> Iterator[Prediction]:
        """Predict the successors of the chosen experts, layer by layer."""
        votes: Mapping[int, float] = self._tokens
        for target in range(layer + 1, min(layer + self._depth + 1, self._layers)):
            prediction = self._follow(target, votes)
            if not prediction.experts:
                return
            yield prediction
            votes = dict(zip(prediction.experts, prediction.scores, strict=True))

    def end_pass(self) -> None:
        """Count the pairs of neighbouring layers of every token."""
        table = self._keys.reshape(-1)
        for layers in self._seen.values():
            for expert, tokens in Counter(chain.from_iterable(layers[0])).items():
                self._first[expert] += tokens
            self._first_tokens += len(layers[0])
            chosen = pad(layers)  # [L, T, K]
            before, after = chosen[:-1, :, :, None], chosen[1:, :, None, :]
            layer = np.arange(1, len(layers))[:, None, None, None]
            index = (layer * self._experts + before) * self._experts + after  # [L-1, T, K, K]
            if chosen.min(initial=0) < 0:
                index = index[(before >= 0) & (after >= 0)]
            np.add.at(table, index.reshape(-1), self._experts)
        self._seen, self._layer = {}, -1

    def _follow(self, target: int, votes: Mapping[int, float]) -> Prediction:
        keys = self._keys[target, list(votes)]  # [P, E]
        cut = self._experts - self._successors
        best = np.argpartition(keys, cut, axis=1)[:, cut:] if cut else None  # [P, K]
        if best is None:
            best = np.broadcast_to(np.arange(self._experts), keys.shape)
        weights = np.fromiter(votes.values(), np.float64, len(votes))
        cast = np.where(np.take_along_axis(keys, best, 1) > 0, weights[:, None], 0.0)  # [P, K]
        found = np.bincount(best.reshape(-1), cast.reshape(-1), self._experts)  # [E]
        ranked = np.argsort(-found, kind="stable")[: self._count]
        scale = 1.0 / float(weights.sum())
        pairs = [(int(e), float(found[e]) * scale) for e in ranked if found[e] > 0]
        return Prediction(target, tuple(e for e, _ in pairs), tuple(s for _, s in pairs))


def pad(layers: Sequence[_Rows]) -> NDArray[np.int64]:
    """Convert nested lists to [L, T, K], with -1 if a router chose fewer than the others."""
    width = max((len(row) for rows in layers for row in rows), default=0)
    if all(len(row) == width for rows in layers for row in rows):
        return np.array(layers, dtype=np.int64).reshape(len(layers), -1, width)
    padded = [[[*row, *[-1] * (width - len(row))] for row in rows] for rows in layers]
    return np.array(padded, dtype=np.int64)
