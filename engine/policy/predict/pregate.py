"""Predicts with gates that were trained to choose the next layer's experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from engine.policy.context import PolicyContext
from engine.policy.events import GateView, Need
from engine.policy.predict.base import Prediction
from engine.policy.predict.next_gate import NextGatePredictor, rank_by_count
from engine.policy.predict.none import NoPredictor
from engine.policy.predict.top import top_columns


class PregatePredictor(NoPredictor):
    """Pre-gated MoE (arXiv 2308.12066): the gate in layer l selects for layer l + 1.

    `pregate.<layer>` of the learned arrays, [E, D], is applied to the gate input of <layer>; the
    top-(k + extra) of each token, the most often chosen first; scores are fractions of tokens.
    Stock checkpoints have none: tune train pregates trains them on a trace. If one is missing,
    next_gate with the same depth is used, and `fallback` says so.
    """

    def __init__(self, context: PolicyContext) -> None:
        prefetch = context.config.prefetch
        self._count = min(context.chosen + prefetch.extra_experts, context.experts)
        self._depth = prefetch.depth
        names = [f"pregate.{layer}" for layer in range(context.layers - 1)]
        missing = [name for name in names if name not in context.learned]
        self._gates = [
            np.ascontiguousarray(context.learned[name].T, dtype=np.float32)  # [D, E]
            for name in names
            if not missing
        ]
        self._stand_in = NextGatePredictor(
            context.layers, context.chosen, prefetch.depth, prefetch.extra_experts
        )
        self.fallback: str | None = None
        if missing:
            self.fallback = (
                f"next_gate, for no learned array is named {', '.join(missing[:3])}"
                f"{' and so on' if len(missing) > 3 else ''}: train them with "
                "tune train pregates"
            )
        self.needs: frozenset[Need] = frozenset({"top_experts" if missing else "gate_input"})

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> Iterable[Prediction]:
        """Predict the next layer."""
        if self.fallback is not None:
            return self._stand_in.gate_entered(layer, micro_batch, view)
        return self._predict(layer, view)

    def _predict(self, layer: int, view: GateView) -> Iterator[Prediction]:
        if self._depth and layer < len(self._gates):
            scores = view.gate_input().astype(np.float32, copy=False) @ self._gates[layer]
            yield rank_by_count(layer + 1, top_columns(scores, self._count))
