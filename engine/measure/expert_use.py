"""Counts the use of each layer's experts in a measurement, after the clock has stopped.

In: the recorded routing and the policy's counters. Out: ExpertUse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.contract.report import ExpertUse
from engine.facts.model import ModelFacts
from engine.policy.expert_policy import PolicyCounters
from engine.trace.trace import Trace


def expert_use(
    facts: ModelFacts, trace: Trace, first_pass: int, counted: Sequence[PolicyCounters]
) -> ExpertUse:
    """Expert use of all passes from first_pass on. counted: the counters of each repeat."""
    row = trace.passes[first_pass].first if first_pass < len(trace.passes) else len(trace.experts)
    chosen = trace.experts[row:]  # [N, L, K]
    layers = range(facts.moe_layers)
    return ExpertUse(
        activations=tuple(_tokens_by_expert(chosen[:, layer], facts.experts) for layer in layers),
        hits=tuple(sum(one.hits_by_layer[layer] for one in counted) for layer in layers),
        misses=tuple(sum(one.misses_by_layer[layer] for one in counted) for layer in layers),
        predicted=tuple(sum(one.predicted_by_layer[layer] for one in counted) for layer in layers),
        predicted_demanded=tuple(
            sum(one.predicted_demanded_by_layer[layer] for one in counted) for layer in layers
        ),
    )


def _tokens_by_expert(chosen: NDArray[np.int16], experts: int) -> tuple[int, ...]:
    """chosen: [N, K], -1 where a router chose fewer."""
    found = np.bincount(chosen[chosen >= 0], minlength=experts)
    return tuple(int(count) for count in found)
