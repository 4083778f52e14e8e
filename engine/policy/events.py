"""The inputs of a policy at each event of the logical clock. Values only; arrays are numpy's.

Letters: T tokens of one micro-batch, K chosen experts, E experts of a layer, D hidden.

Events of one forward pass, in this order:
  pass begins; for each MoE layer: (gate entered, routed) once for each micro-batch, layer routed,
  layer computed; pass ends. The engine and the replay issue the same events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.types import Phase

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

Need = Literal["top_experts", "gate_input", "weights", "probabilities", "embeddings"]
"""Inputs that a predictor or precision policy needs beyond the chosen experts."""


class GateView(Protocol):
    """The input of a layer's router, for one micro-batch."""

    def top_experts(self, layer: int, count: int) -> Sequence[Sequence[int]]:
        """The `count` best experts of a later layer's router on the present gate input, for each
        token, best first: [T][count]. Needs `top_experts`."""

    def gate_input(self) -> Floats:
        """The hidden states that the router reads, [T, D]. Needs `gate_input`."""


@dataclass(frozen=True)
class PassStart:
    """The start of a forward pass.

    tokens: of each micro-batch; embeddings: of their input tokens [sum T, D] if needed.
    """

    phase: Phase
    tokens: tuple[int, ...]
    embeddings: Floats | None = None


@dataclass(frozen=True)
class Routing:
    """The router's choice in one layer for one micro-batch.

    experts: [T][K], best first as the router gave them, sentinels left out; weights: the gate
    weights [T, K]; probabilities: of all experts [T, E]; both None unless needed.
    """

    experts: Sequence[Sequence[int]]
    weights: Floats | None = None
    probabilities: Floats | None = None
