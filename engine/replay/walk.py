"""Feeds a trace to a policy, event by event, as the engine would.

In: a trace, a policy, a listener. The listener receives the policy's decisions; it can be left out
if only look-ups are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from engine.errors import UsageError
from engine.policy.events import Floats, PassStart, Routing
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.steps import Fetch, Step
from engine.trace.trace import Trace, TracePass


class Listener(Protocol):
    """Receives decisions, to execute or count them."""

    def begin_pass(self, number: int, item: TracePass, fetches: Sequence[Fetch]) -> None:
        """Called when the pass of this number begins."""

    def gate_entered(self, layer: int, tokens: int, fetches: Sequence[Fetch]) -> None:
        """Called when the router of a layer is about to run for one micro-batch. tokens: that pass
        it now."""

    def routed(self, layer: int, tokens: int, steps: Sequence[Step]) -> None:
        """Called when one micro-batch is routed."""

    def layer_routed(self, layer: int, steps: Sequence[Step], fetches: Sequence[Fetch]) -> None:
        """Called when all micro-batches are routed: the layer is computed now."""

    def end_pass(self) -> None:
        """Called when the pass is done."""


class Nobody:
    """A listener that ignores every event."""

    def begin_pass(self, number: int, item: TracePass, fetches: Sequence[Fetch]) -> None:
        """Ignore the event."""

    def gate_entered(self, layer: int, tokens: int, fetches: Sequence[Fetch]) -> None:
        """Ignore the event."""

    def routed(self, layer: int, tokens: int, steps: Sequence[Step]) -> None:
        """Ignore the event."""

    def layer_routed(self, layer: int, steps: Sequence[Step], fetches: Sequence[Fetch]) -> None:
        """Ignore the event."""

    def end_pass(self) -> None:
        """Ignore the event."""


class TraceView:
    """Implements GateView from the arrays of a trace."""

    def __init__(self, trace: Trace, rows: slice, layer: int) -> None:
        self._trace = trace
        self._rows = rows
        self._layer = layer

    def top_experts(self, layer: int, count: int) -> Sequence[Sequence[int]]:
        """See GateView. Raises UsageError if the trace was recorded without look-ahead."""
        kept = self._trace.look_ahead
        ahead = layer - self._layer - 1
        if kept is None or ahead >= kept.shape[2] or count > kept.shape[3]:
            raise UsageError(
                f"this trace does not hold the best {count} experts {ahead + 1} layers ahead: "
                "lower prefetch.depth or prefetch.extra_experts, or record it anew"
            )
        found: list[list[int]] = kept[self._rows, self._layer, ahead, :count].tolist()
        return found

    def gate_input(self) -> Floats:
        """See GateView. Raises UsageError if the trace was recorded without gate inputs."""
        if self._trace.gate_inputs is None:
            raise UsageError(
                "this trace holds no gate inputs: record it with `tune trace --gate-inputs`"
            )
        block: Floats = self._trace.gate_inputs[self._rows, self._layer].astype(np.float32)
        return block


def walk(
    trace: Trace,
    policy: ExpertPolicy,
    listener: Listener | None = None,
    passes: Iterable[int] | None = None,
    *,
    together: bool = False,
) -> None:
    """Feed the trace's passes (all, or these numbers) to the policy in the engine's order.

    together: micro-batches that decode pass each layer's router at once, so that the first one's
    tokens are those of all, and the others' are none.
    """
    listening = listener or Nobody()
    group = -1
    for number in range(len(trace.passes)) if passes is None else passes:
        item = trace.passes[number]
        if item.group != group:
            group = item.group
            policy.begin_sequences()
        rows = list(trace.micro_batches(number))
        listening.begin_pass(number, item, policy.begin_pass(_start(trace, item)))
        for layer in range(trace.layers):
            for micro_batch, part in enumerate(rows):
                tokens = entering = part.stop - part.start
                if together and item.phase == "decode":
                    entering = 0 if micro_batch else sum(item.tokens)
                if policy.watches_gate:
                    view = TraceView(trace, part, layer)
                    listening.gate_entered(
                        layer, entering, policy.gate_entered(layer, micro_batch, view)
                    )
                else:
                    listening.gate_entered(layer, entering, ())
                routing = _routing(trace, policy, part, layer)
                listening.routed(layer, tokens, policy.routed(layer, micro_batch, routing))
            listening.layer_routed(layer, *policy.layer_routed())
            policy.computed()
        policy.end_pass()
        listening.end_pass()


def _start(trace: Trace, item: TracePass) -> PassStart:
    embeddings = None
    if trace.embeddings is not None:
        last = item.first + sum(item.tokens)
        embeddings = trace.embeddings[item.first : last].astype(np.float32)
    return PassStart(item.phase, item.tokens, embeddings)


def _routing(trace: Trace, policy: ExpertPolicy, rows: slice, layer: int) -> Routing:
    weights = probabilities = None
    if "weights" in policy.needs:
        if trace.weights is None:
            raise UsageError("this trace holds no gate weights: record it with `tune trace`")
        weights = trace.weights[rows, layer].astype(np.float32)
    if "probabilities" in policy.needs and trace.probabilities is not None:
        probabilities = trace.probabilities[rows, layer].astype(np.float32)
    return Routing(trace.chosen(rows, layer), weights, probabilities)
