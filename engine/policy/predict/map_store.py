"""Expert maps of past tokens, searched by embedding and by the path through the layers.

Letters: L layers, E experts, D hidden, C stored maps, Q queries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.policy.events import Floats

Array = NDArray[np.float32]
_TINY = 1e-12


class MapStore:
    """At most `capacity` maps of gate probabilities [L, E], each with an embedding of unit length.

    Maps are stored layer by layer, so that one layer's part of the dot products is one product.
    """

    def __init__(self, capacity: int, layers: int, experts: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._maps: Array = np.zeros((layers, capacity, experts), np.float32)
        self._prefix: Array = np.zeros((layers, capacity), np.float32)  # 1 / norm of layers 0..l
        self._embeddings: Array | None = None

    def semantic(self, embeddings: Array) -> Array:
        """Cosines of unit embeddings [Q, D] with all stored ones, [Q, C]."""
        if self._embeddings is None:
            return np.zeros((len(embeddings), 0), np.float32)
        return embeddings @ self._embeddings[: self.size].T

    def dots(self, layer: int, rows: Array) -> Array:
        """Dot products of one layer's probabilities [Q, E] with all stored ones, [Q, C]."""
        return rows @ self._maps[layer, : self.size].T

    def trajectory(self, layer: int, dots: Array, squares: Array) -> Array:
        """Cosines over layers 0..layer, from summed dot products [Q, C] and the queries' own summed
        squares [Q]."""
        own = np.sqrt(np.maximum(squares, _TINY))
        cosines: Array = np.divide(dots * self._prefix[layer, : self.size], own[:, None])
        return cosines

    def row(self, layer: int, place: int) -> Array:
        """Probabilities of a stored map at a layer, [E]."""
        return np.asarray(self._maps[layer, place])

    def add(self, embedding: Array, found: Array, redundancy: Array | None) -> int:
        """Store a map [L, E]; when full, replace the one with the largest redundancy [C].
        Returns its index."""
        if self._embeddings is None:
            self._embeddings = np.zeros((self.capacity, len(embedding)), np.float32)
        if self.size < self.capacity:
            place = self.size
            self.size += 1
        else:
            assert redundancy is not None, "a full store needs to know what is redundant"
            place = int(redundancy.argmax())
        self._embeddings[place] = embedding
        self._maps[:, place] = found
        squares = np.cumsum((found * found).sum(1))
        self._prefix[:, place] = 1.0 / np.sqrt(np.maximum(squares, _TINY))
        return place


def unit(rows: Floats) -> Array:
    """Normalize rows to length 1."""
    values = rows.astype(np.float32, copy=False)
    norms = np.sqrt((values * values).sum(1, keepdims=True))
    return np.asarray(values / np.maximum(norms, _TINY))
