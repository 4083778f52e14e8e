"""Predicts that a layer chooses the same experts as for the last token."""

from __future__ import annotations

from collections.abc import Iterable

from engine.policy.context import PolicyContext
from engine.policy.events import PassStart, Routing
from engine.policy.predict.base import Prediction
from engine.policy.predict.next_gate import rank_by_count
from engine.policy.predict.none import NoPredictor
from engine.types import Phase


class RepeatLastPredictor(NoPredictor):
    """For each of the next `depth` layers, the experts of its last pass.

    In prefill those of the last token of every micro-batch; in decode those of every token, each of
    which belongs to its own sequence. After the last layer the first ones of the next pass follow.
    Scores are fractions of those tokens.
    """

    def __init__(self, layers: int, depth: int) -> None:
        self._layers = layers
        self._depth = min(depth, layers - 1)
        self._phase: Phase = "decode"
        self._rows: list[list[int]] = []
        self._last: list[Prediction | None] = [None] * layers

    def begin_sequences(self) -> None:
        """Forget the last tokens: a new text has others."""
        self._last = [None] * self._layers

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Predict nothing: the previous pass already predicted the first layers of this one."""
        self._phase = start.phase
        return ()

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Store the last tokens' experts."""
        rows = routing.experts if self._phase == "decode" else routing.experts[-1:]
        self._rows.extend(list(row) for row in rows)

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """Predict what the next layers chose last."""
        self._last[layer] = rank_by_count(layer, self._rows) if self._rows else None
        self._rows = []
        ahead = ((layer + step) % self._layers for step in range(1, self._depth + 1))
        return [found for target in ahead if (found := self._last[target]) is not None]


def build(context: PolicyContext) -> RepeatLastPredictor:
    """The factory of engine.config.choices."""
    return RepeatLastPredictor(context.layers, context.config.prefetch.depth)
