"""Records the routing of texts that are scored layer by layer, as a routing trace.

It adds no cost to an evaluation that runs anyway, and shows which experts are popular.

Letters: B sequences, S tokens of each, T tokens kept, L MoE layers, K chosen experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.facts.model import ModelFacts
from engine.run.layer_by_layer import Routed, TextBatch
from engine.trace.trace import Trace, TracePass

MOST_TOKENS = 1 << 15


class RouteRecorder:
    """Keeps the chosen experts of the first MOST_TOKENS tokens, one pass per text."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._lengths: list[int] = []
        self._chosen: list[list[NDArray[np.int16]]] = [[] for _ in range(facts.moe_layers)]

    @property
    def tokens(self) -> int:
        return sum(self._lengths)

    def group(self, batches: Sequence[TextBatch]) -> Routed | None:
        """A callback that records the routing of one pass over these batches; None if enough
        tokens are recorded."""
        if self.tokens >= MOST_TOKENS:
            return None
        self._lengths += [length for batch in batches for length in batch.lengths]

        def routed(layer: int, number: int, index: torch.Tensor) -> None:
            batch = batches[number]
            rows, size = batch.tokens.shape
            table = index.view(rows, size, -1).to("cpu", torch.int16)  # [B, S, K]
            table[table == self._facts.experts] = -1
            for row, length in enumerate(batch.lengths):
                self._chosen[layer].append(table[row, :length].numpy().copy())

        return routed

    def trace(self) -> Trace | None:
        """The recorded trace; None if no text passed layer by layer, or a pass was interrupted."""
        if not all(len(texts) == len(self._lengths) > 0 for texts in self._chosen):
            return None
        firsts = np.cumsum([0, *self._lengths])
        return Trace(
            passes=tuple(
                TracePass(number, "prefill", (length,), int(firsts[number]))
                for number, length in enumerate(self._lengths)
            ),
            experts=np.stack([np.concatenate(texts) for texts in self._chosen], axis=1),
            weights=None,
            probabilities=None,
            look_ahead=None,
            embeddings=None,
            gate_inputs=None,
            facts={
                "model": self._facts.id,
                "fingerprint": self._facts.fingerprint,
                "experts": self._facts.experts,
                "workload": "scored texts",
                "model_facts": self._facts.to_json(),
            },
        )
