"""Predicts from past tokens with similar gate probabilities.

Letters: L layers, E experts, C stored maps, Q queries of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from engine.policy.context import PolicyContext
from engine.policy.events import Floats, Need, PassStart, Routing
from engine.policy.options import whole
from engine.policy.predict.base import Prediction
from engine.policy.predict.history import learn
from engine.policy.predict.map_store import Array, MapStore, unit
from engine.policy.predict.none import NoPredictor


class ExpertMapPredictor(NoPredictor):
    """Searches expert maps (fMoE, arXiv 2502.05370).

    It stores maps of gate probabilities [L, E] of past tokens; the most similar one predicts d =
    `prefetch.depth` layers ahead. Layers below d are predicted when a pass begins, by cosine of the
    token's embedding; layer l + d once layer l is routed, by cosine of the probabilities of layers
    0..l. Experts are taken by probability until their sum passes clip(1 - cosine, 0, 1), at least k
    + extra of them: the less similar, the more. `prefetch.options.capacity` maps are kept; a new
    one replaces the one with the largest w * semantic + (1 - w) * trajectory cosine, w = d / L.

    In decode every token is its own query; in prefill, with many tokens, the mean over the tokens
    of a micro-batch is one query and one map. Several queries predict the union of their experts,
    scored by their mean probability. One layer costs one [Q, E] x [E, C] product.
    """

    needs: frozenset[Need] = frozenset({"probabilities", "embeddings"})

    def __init__(self, context: PolicyContext) -> None:
        prefetch = context.config.prefetch
        self._layers, self._experts = context.layers, context.experts
        self._distance = prefetch.depth
        self._least = min(context.chosen + prefetch.extra_experts, self._experts)
        capacity = whole(prefetch.options, "prefetch.options.capacity", 1000, 1, 1_000_000)
        self._store = MapStore(capacity, self._layers, self._experts)
        self._queries = _Queries.empty(self._layers, self._experts)
        if context.history is not None:
            learn(self, context.history, context.layers, context.experts)

    @property
    def stored(self) -> int:
        """Number of stored maps."""
        return self._store.size

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Predict the first d layers from the tokens' embeddings."""
        assert start.embeddings is not None, "declared in needs"
        self._queries = _Queries(start, start.embeddings, self._layers, self._experts)
        return self._search_meaning()

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Store the probabilities of the queries."""
        assert routing.probabilities is not None, "declared in needs"
        self._queries.observe(layer, micro_batch, routing.probabilities)

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """Predict the layer d ahead from the layers so far."""
        if not self._distance or not self._store.size:
            return ()
        cosines = self._queries.advance(layer, self._store)
        target = layer + self._distance
        return (self._select(target, cosines),) if target < self._layers else ()

    def end_pass(self) -> None:
        """Store the maps of this pass."""
        queries, store = self._queries, self._store
        if not queries.count:
            return
        redundancy: Array | None = None
        if store.size + queries.count > store.capacity:
            weight = self._distance / self._layers
            meaning = self._meaning()
            path = queries.whole_path(store)
            redundancy = weight * meaning + (1.0 - weight) * path  # [Q, C]
        before = store.size
        for query in range(queries.count):
            found = None
            if redundancy is not None:  # maps added in this pass are not replaced
                found = np.full(store.size, -np.inf, np.float32)
                found[:before] = redundancy[query]
            place = store.add(queries.embeddings[query], queries.maps[query], found)
            if redundancy is not None and place < before:
                redundancy[:, place] = -np.inf

    def _search_meaning(self) -> Iterator[Prediction]:
        if not self._distance or not self._store.size:
            return
        cosines = self._meaning()
        for target in range(min(self._distance, self._layers)):
            yield self._select(target, cosines)

    def _meaning(self) -> Array:
        """Cosines of the embeddings, computed once per pass: the store changes only at its end."""
        queries = self._queries
        if queries.meaning is None:
            queries.meaning = self._store.semantic(queries.embeddings)
        return queries.meaning

    def _select(self, target: int, cosines: Array) -> Prediction:
        total = np.zeros(self._experts, np.float32)
        union: dict[int, None] = {}
        for query, place in enumerate(cosines.argmax(1).tolist()):
            row = self._store.row(target, place)
            needed = min(max(1.0 - float(cosines[query, place]), 0.0), 1.0)
            ranked = np.argsort(-row, kind="stable")
            mass = np.cumsum(row[ranked])
            count = max(self._least, int(np.searchsorted(mass, needed, side="right")) + 1)
            union.update(dict.fromkeys(ranked[:count].tolist()))
            total += row
        scores = (total / len(cosines)).tolist()
        experts = tuple(sorted(union, key=lambda e: (-scores[e], e)))
        return Prediction(target, experts, tuple(min(1.0, scores[e]) for e in experts))


class _Queries:
    """State of a pass: embeddings [Q, D] of unit length, maps [Q, L, E], and meaning, their
    cosines with the stored embeddings [Q, C] if computed."""

    def __init__(self, start: PassStart, embeddings: Floats, layers: int, experts: int) -> None:
        self._alone = start.phase == "decode"
        borders = np.cumsum((0, *start.tokens)).tolist()
        if self._alone:
            self._first = borders
            self.embeddings = unit(embeddings)
        else:
            self._first = list(range(len(start.tokens) + 1))
            parts = [embeddings[a:b].mean(0, dtype=np.float32) for a, b in pairwise(borders)]
            self.embeddings = unit(np.array(parts)) if parts else embeddings[:0]
        self.count = len(self.embeddings)
        self.maps: Array = np.zeros((self.count, layers, experts), np.float32)
        self._squares: Array = np.zeros(self.count, np.float32)
        self.meaning: Array | None = None
        self._dots: Array | None = None
        self._layers_seen = 0

    @classmethod
    def empty(cls, layers: int, experts: int) -> _Queries:
        """The state before the first pass."""
        nothing = np.zeros((0, 1), np.float32)
        return cls(PassStart("decode", ()), nothing, layers, experts)

    def observe(self, layer: int, micro_batch: int, probabilities: Floats) -> None:
        """Store the probabilities [T, E] of one micro-batch."""
        rows = slice(self._first[micro_batch], self._first[micro_batch + 1])
        if self._alone:
            self.maps[rows, layer] = probabilities
        else:
            self.maps[rows, layer] = probabilities.mean(0, dtype=np.float32)

    def advance(self, layer: int, store: MapStore) -> Array:
        """Add this layer to the path; cosines with all stored maps over layers 0..layer, [Q, C]."""
        rows = self.maps[:, layer]
        added = store.dots(layer, rows)
        self._dots = added if self._dots is None else self._dots + added
        self._squares += (rows * rows).sum(1)
        self._layers_seen += 1
        return store.trajectory(layer, self._dots, self._squares)

    def whole_path(self, store: MapStore) -> Array:
        """Cosines over all layers, [Q, C]."""
        layers = self.maps.shape[1]
        if self._dots is None or self._layers_seen < layers:
            self._dots = sum(
                (store.dots(layer, self.maps[:, layer]) for layer in range(layers)),
                np.zeros((self.count, store.size), np.float32),
            )
            self._squares = (self.maps * self.maps).sum((1, 2))
        return store.trajectory(layers - 1, self._dots, self._squares)
