"""Predicts with a small trained network per layer, computed on the host.

Letters: T tokens, D hidden, H width of the network, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future as Pending
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError
from engine.policy.context import PolicyContext
from engine.policy.events import Floats, GateView, Need, PassStart
from engine.policy.options import whole
from engine.policy.predict.base import Prediction
from engine.policy.predict.next_gate import rank_by_count
from engine.policy.predict.none import NoPredictor
from engine.policy.predict.top import top_columns

_Array = NDArray[np.float32]


class _Network(NamedTuple):
    w1: _Array  # [D, H]
    b1: _Array  # [H]
    w2: _Array  # [H, E]
    b2: _Array  # [E]

    def scores(self, gate_input: Floats) -> _Array:
        """Scores [T, E] of a gate input [T, D]."""
        inner = gate_input.astype(np.float32, copy=False) @ self.w1  # [T, H]
        inner += self.b1
        np.maximum(inner, 0.0, out=inner)
        return np.asarray(inner @ self.w2 + self.b2)


class MlpPredictor(NoPredictor):
    """Predicts with a trained MLP per layer (ProMoE, arXiv 2410.22134).

    Two linear layers with a ReLU between them map the gate input of a layer to the scores of the
    layer `prefetch.options.stride` (1 or 2) after it; the top-(k + extra) of each token, the most
    often chosen first; scores are fractions of tokens.

    Stride 2 computes in parallel with the engine: the product starts at a layer's gate and is
    collected at the next one, so that the decision stays on the logical clock. `prefetch.depth`
    only enables it. Learned arrays: `mlp.<layer>.w1` [D, H], `.b1`, `.w2` [H, E], `.b2` of the
    layer that is read, and `mlp.stride`. Raises ConfigError if they are missing or of another
    stride.
    """

    needs: frozenset[Need] = frozenset({"gate_input"})

    def __init__(self, context: PolicyContext) -> None:
        prefetch = context.config.prefetch
        self._stride = whole(prefetch.options, "prefetch.options.stride", 1, 1, 2)
        self._count = min(context.chosen + prefetch.extra_experts, context.experts)
        self._active = prefetch.depth > 0
        self._submit = context.submit
        self._networks = _read(context, self._stride)
        self._pending: dict[int, tuple[int, Pending[Prediction]]] = {}

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Drop pending products."""
        self._pending = {}
        return ()

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> Iterable[Prediction]:
        """Stride 1: predict the next layer. Stride 2: collect the previous layer's product,
        start a new one."""
        if not self._active:
            return ()
        if self._stride == 1:
            if layer >= len(self._networks):
                return ()
            return (self._predict(layer, view.gate_input()),)
        begun = self._pending.pop(micro_batch, None)
        if layer < len(self._networks):
            gate_input = view.gate_input()
            work = self._submit(lambda: self._predict(layer, gate_input))
            self._pending[micro_batch] = (layer, work)
        if begun is None or begun[0] != layer - 1:
            return ()
        return (begun[1].result(),)

    def _predict(self, layer: int, gate_input: Floats) -> Prediction:
        scores = self._networks[layer].scores(gate_input)
        return rank_by_count(layer + self._stride, top_columns(scores, self._count))


def _read(context: PolicyContext, stride: int) -> list[_Network]:
    """The networks of all layers that have a target layer."""
    learned = context.learned
    trained = int(learned["mlp.stride"].item()) if "mlp.stride" in learned else None
    try:
        networks = [
            _Network(
                *(
                    np.ascontiguousarray(learned[f"mlp.{layer}.{name}"], dtype=np.float32)
                    for name in _Network._fields
                )
            )
            for layer in range(context.layers - stride)
        ]
    except KeyError as error:
        raise ConfigError(
            f"prefetch.predictor = mlp needs trained weights, and {error} is not among the "
            f"{len(learned)} learned arrays: train them with tune train predictor "
            f"--stride {stride}"
        ) from None
    if trained is not None and trained != stride:
        raise ConfigError(
            f"prefetch.options.stride = {stride}, but the weights were trained for {trained}: set "
            f"it to {trained}, or train again with tune train predictor --stride {stride}"
        )
    return networks
