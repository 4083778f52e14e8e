"""Records a routing trace while the engine runs. Routing does not depend on exact policies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.facts.model import ModelFacts
from engine.model.gates import RANKED_EXTRA, RouterView
from engine.policy.events import Integers, Need, PassStart, Routing
from engine.trace.trace import LOOK_AHEAD_LAYERS, Trace, TracePass

_FEW_TOKENS = 8


class TraceRecorder:
    """Implements RoutingRecorder.

    gate_inputs: also keep each router's input (2 D bytes per token and layer), on which predictors
    are trained; lean: keep the chosen experts only.
    """

    def __init__(self, facts: ModelFacts, *, gate_inputs: bool = False, lean: bool = False) -> None:
        self._facts = facts
        self._keep_inputs = gate_inputs
        needs: set[Need] = set()
        if not lean:
            needs |= {"weights", "probabilities", "embeddings"}
            if "next_gate" in facts.predictors:
                needs.add("top_experts")
            if gate_inputs:
                needs.add("gate_input")
        self.needs = frozenset(needs)
        self._group = -1
        self._tokens = 0
        self._passes: list[TracePass] = []
        layers = facts.moe_layers
        self._experts: list[list[Any]] = [[] for _ in range(layers)]
        self._weights: list[list[Any]] = [[] for _ in range(layers)]
        self._probabilities: list[list[Any]] = [[] for _ in range(layers)]
        self._ahead: list[list[Any]] = [[] for _ in range(layers)]
        self._inputs: list[list[Any]] = [[] for _ in range(layers)]
        self._embeddings: list[Any] = []

    @property
    def passes(self) -> int:
        """Number of passes recorded so far."""
        return len(self._passes)

    def begin_sequences(self) -> None:
        """Start a new group of sequences."""
        self._group += 1

    def begin_pass(self, start: PassStart) -> None:
        """Record the pass and its tokens' embeddings."""
        self._passes.append(TracePass(max(0, self._group), start.phase, start.tokens, self._tokens))
        self._tokens += sum(start.tokens)
        if start.embeddings is not None:
            self._embeddings.append(start.embeddings.astype(np.float16))

    def gate_entered(self, layer: int, micro_batch: int, view: RouterView) -> None:
        """Record what later routers would choose here (gate look-ahead)."""
        if "top_experts" in self.needs:
            self._ahead[layer].append(self._look_ahead(layer, micro_batch, view))
        if self._keep_inputs:
            self._inputs[layer].append(np.asarray(view.gate_input()).astype(np.float16))

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Record the router's choice."""
        # Single tokens are converted when nothing is being timed. Those of a prompt take 120 bytes
        # each as lists, of memory that a run is measured by: converting 256 takes some 0.1 ms.
        experts = routing.experts
        few = len(experts) < _FEW_TOKENS
        width = self._facts.experts_per_token
        self._experts[layer].append(experts if few else _table(experts, width))
        if routing.weights is not None:
            self._weights[layer].append(routing.weights.astype(np.float16))
        if routing.probabilities is not None:
            self._probabilities[layer].append(routing.probabilities.astype(np.float16))

    def trace(self, **facts: Any) -> Trace:
        """The recorded trace. facts: kept beside the model's."""
        assert all(self._experts), "nothing was recorded"
        chosen = self._facts.experts_per_token
        joined = [_joined(calls, chosen) for calls in self._experts]
        experts: NDArray[np.int16] = np.stack(joined, axis=1).astype(np.int16)
        return Trace(
            passes=tuple(self._passes),
            experts=experts,
            weights=_stack(self._weights),
            probabilities=_stack(self._probabilities),
            look_ahead=_stack(self._ahead),
            embeddings=np.concatenate(self._embeddings) if self._embeddings else None,
            gate_inputs=_stack(self._inputs),
            facts={
                "model": self._facts.id,
                "fingerprint": self._facts.fingerprint,
                "experts": self._facts.experts,
                **facts,
            },
        )

    def _look_ahead(self, layer: int, micro_batch: int, view: RouterView) -> Integers:
        """[t, H, M], -1 where there is no such layer."""
        tokens = self._passes[-1].tokens[micro_batch]
        count = min(self._facts.experts, self._facts.experts_per_token + RANKED_EXTRA)
        block = np.full((tokens, LOOK_AHEAD_LAYERS, count), -1, dtype=np.int16)
        for ahead in range(min(LOOK_AHEAD_LAYERS, self._facts.moe_layers - layer - 1)):
            block[:, ahead] = _table(view.top_experts(layer + 1 + ahead, count), count)
        return block


def _joined(calls: Sequence[Any], width: int) -> Integers:
    """Calls of lists [t][at most width] or arrays [t, width] -> int16 [T, width]."""
    parts: list[Integers] = []
    for is_array, some in itertools.groupby(calls, lambda call: isinstance(call, np.ndarray)):
        group = list(some)
        parts += group if is_array else [_table(list(itertools.chain(*group)), width)]
    return np.concatenate(parts)


def _table(rows: Sequence[Sequence[int]], width: int) -> Integers:
    """[T][at most width] -> [T, width], -1 where a row is shorter."""
    if all(len(row) == width for row in rows):
        return np.array(rows, dtype=np.int16).reshape(len(rows), width)
    out = np.full((len(rows), width), -1, dtype=np.int16)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row[:width]
    return out


def _stack(layers: Sequence[Sequence[Any]]) -> Any:
    """[L][calls][t, ...] -> [N, L, ...]; None if some layer recorded nothing."""
    if not all(layers):
        return None
    return np.stack([np.concatenate(calls) for calls in layers], axis=1)
