"""Predicts from past sequences with similar expert use.

Letters: L layers, E experts, C stored sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from engine.policy.context import PolicyContext
from engine.policy.events import PassStart, Routing
from engine.policy.options import flag, whole
from engine.policy.predict.base import Prediction
from engine.policy.predict.history import learn
from engine.policy.predict.none import NoPredictor

_Array = NDArray[np.float32]


class ActivationPathPredictor(NoPredictor):
    """Matches sequences by their expert use (MoE-Infinity).

    Each sequence (micro-batch) counts its use of every expert, [L, E]; the stored sequence with the
    largest cosine, averaged over the layers seen so far, predicts later layers. The k + extra most
    probable experts of each layer within `depth` are predicted (`prefetch.options.all_later: true`:
    of all later layers), scored by their fraction of the matched row times 1 - (l - present)/(L +
    1), averaged over the micro-batches. When a pass begins, the first layers are predicted from the
    passes before. A sequence is stored when it ends; beyond `prefetch.options.capacity` it replaces
    the most similar one.

    A layer's cosine changes only when that layer is routed: one [C, E] x [E] product per event.
    """

    def __init__(self, context: PolicyContext) -> None:
        prefetch = context.config.prefetch
        self._layers, self._experts = context.layers, context.experts
        reach = self._layers if flag(prefetch.options, "prefetch.options.all_later") else 0
        self._depth = max(reach, prefetch.depth)
        self._count = min(context.chosen + prefetch.extra_experts, self._experts)
        capacity = whole(prefetch.options, "prefetch.options.capacity", 1000, 1, 1_000_000)
        self._rows: _Array = np.zeros((self._layers, capacity, self._experts), np.float32)
        self._capacity = capacity
        self._size = 0
        self._sequences: dict[int, _Sequence] = {}
        if context.history is not None:
            learn(self, context.history, context.layers, context.experts)

    @property
    def stored(self) -> int:
        """Number of stored sequences."""
        return self._size

    def begin_sequences(self) -> None:
        """Store the sequences that have ended."""
        for sequence in self._sequences.values():
            self._store(sequence.counts)
        self._sequences = {}

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Predict the first layers, after at least one pass."""
        for sequence in self._sequences.values():
            sequence.add_up()
        return self._predict(-1)

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Count the sequence's experts of this layer."""
        sequence = self._sequences.get(micro_batch)
        if sequence is None:
            sequence = _Sequence(self._layers, self._experts, self._size)
            self._sequences[micro_batch] = sequence
        row = sequence.counts[layer]
        if len(routing.experts) == 1:
            row[routing.experts[0]] += 1.0  # one token chooses no expert twice
        else:
            flat = [e for chosen in routing.experts for e in chosen]
            row += np.bincount(flat, minlength=self._experts)

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """Match again with this layer's choice, and predict the layers after it."""
        if self._size and self._depth:
            stored = self._rows[layer, : self._size]
            for sequence in self._sequences.values():
                sequence.observe(layer, stored)
        return self._predict(layer)

    def _predict(self, layer: int) -> Iterator[Prediction]:
        last = min(layer + self._depth, self._layers - 1)
        if not self._size or not self._sequences or last <= layer:
            return
        best = [int(sequence.likeness.argmax()) for sequence in self._sequences.values()]
        for target in range(layer + 1, last + 1):
            row = self._rows[target, best[0]]
            if len(best) == 1:
                row = row / max(float(row.sum()), 1e-12)
            else:
                rows = self._rows[target, best]
                row = (rows / np.maximum(rows.sum(1, keepdims=True), 1e-12)).mean(0)
            decay = 1.0 - (target - layer) / (self._layers + 1)
            experts = np.argsort(-row, kind="stable")[: self._count].tolist()
            scores = (row * decay).tolist()
            found = tuple(e for e in experts if scores[e] > 0)
            yield Prediction(target, found, tuple(scores[e] for e in found))

    def _store(self, counts: _Array) -> None:
        norms = np.sqrt((counts * counts).sum(1, keepdims=True))
        rows = counts / np.maximum(norms, 1e-12)  # [L, E]
        place = self._size
        if place < self._capacity:
            self._size += 1
        else:
            place = int(np.matmul(self._rows, rows[:, :, None]).sum((0, 2)).argmax())
        self._rows[:, place] = rows


class _Sequence:
    """counts: [L, E]; likeness: sum over the layers seen of the cosine with each stored
    sequence, [C]."""

    def __init__(self, layers: int, experts: int, stored: int) -> None:
        self.counts: _Array = np.zeros((layers, experts), np.float32)
        self.likeness: _Array = np.zeros(stored, np.float32)
        self._cosines: _Array = np.zeros((layers, stored), np.float32)

    def add_up(self) -> None:
        """Sum the layers again, so that rounding does not grow with the length of a sequence."""
        self.likeness = self._cosines.sum(0)

    def observe(self, layer: int, stored: _Array) -> None:
        """Replace the layer's part of the likeness."""
        row = self.counts[layer]
        cosines = stored @ row  # [C]
        cosines *= 1.0 / max(float(row @ row) ** 0.5, 1e-12)
        self.likeness += cosines - self._cosines[layer]
        self._cosines[layer] = cosines
