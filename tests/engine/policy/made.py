"""Contexts and traces for the tests of policies, and a driver that runs a policy over a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.config.settings import EngineConfig
from engine.policy.context import PolicyContext, Submit, run_at_once
from engine.policy.events import Floats, PassStart, Routing
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.future import Future
from engine.policy.steps import LayerPass
from engine.trace.trace import Trace, TracePass
from tests.engine.memory.test_plan import make_facts

HIDDEN = 6


def make_trace(
    experts: Any,
    *,
    tokens: Sequence[tuple[int, ...]] | None = None,
    groups: Sequence[int] | None = None,
    among: int = 8,
    seed: int = 0,
) -> Trace:
    """A trace of these choices [N, L, K], one token a pass unless said otherwise; probabilities
    favour what was chosen, embeddings and gate inputs are random."""
    chosen = np.array(experts, dtype=np.int16)
    rows, layers, _ = chosen.shape
    tokens = tokens or [(1,)] * rows
    groups = groups or [0] * len(tokens)
    firsts = np.cumsum([0, *(sum(t) for t in tokens)]).tolist()
    random = np.random.default_rng(seed)
    logits = random.random((rows, layers, among))
    for row, layer in np.ndindex(rows, layers):
        for rank, expert in enumerate(chosen[row, layer]):
            if expert >= 0:
                logits[row, layer, expert] += 4 - rank / 8
    fractions = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    passes = tuple(
        TracePass(group, "prefill" if sum(t) > len(t) else "decode", t, first)
        for group, t, first in zip(groups, tokens, firsts, strict=False)
    )
    weights = np.take_along_axis(fractions, np.maximum(chosen, 0).astype(int), -1)
    return Trace(
        passes=passes,
        experts=chosen,
        weights=weights.astype(np.float16),
        probabilities=fractions.astype(np.float16),
        look_ahead=None,
        embeddings=random.normal(size=(rows, HIDDEN)).astype(np.float16),
        gate_inputs=random.normal(size=(rows, layers, HIDDEN)).astype(np.float16),
        facts={},
    )


def make_context(
    layers: int = 3,
    experts: int = 8,
    chosen: int = 2,
    *,
    history: Trace | None = None,
    future: Trace | None = None,
    learned: Mapping[str, Floats] | None = None,
    submit: Submit = run_at_once,
    **overlay: Any,
) -> PolicyContext:
    """A context of a small model; overlay: paths with two underscores for the dots."""
    known = Future(layers)
    if future is not None:
        known.load(future)
    return PolicyContext(
        EngineConfig().overlay(
            {
                "placement.host_fraction": 0.5,
                "placement.options.host_ratios": {"1": 0.4, "8": 1.5},
                **{path.replace("__", "."): value for path, value in overlay.items()},
            }
        ),
        make_facts(
            layers=layers,
            moe_layers=layers,
            experts=experts,
            experts_per_token=chosen,
            hidden_size=HIDDEN,
        ),
        known,
        history,
        {} if learned is None else learned,
        submit,
    )


def learned_arrays(layers: int, experts: int, *, stride: int, seed: int = 0) -> dict[str, Floats]:
    """Random networks and pre-gates."""
    random = np.random.default_rng(seed)
    shapes = {"w1": (HIDDEN, 4), "b1": (4,), "w2": (4, experts), "b2": (experts,)}
    arrays: dict[str, Floats] = {"mlp.stride": np.array(float(stride))}
    for layer in range(layers):
        for name, shape in shapes.items():
            arrays[f"mlp.{layer}.{name}"] = random.normal(size=shape).astype(np.float32)
        arrays[f"pregate.{layer}"] = random.normal(size=(experts, HIDDEN)).astype(np.float32)
    return arrays


class TraceView:
    """What a router of a trace reads: its gate inputs; later routers choose what they chose."""

    def __init__(self, trace: Trace, rows: slice, layer: int) -> None:
        self._trace, self._rows, self._layer = trace, rows, layer

    def top_experts(self, layer: int, count: int) -> list[list[int]]:
        """The choices of the trace."""
        return [chosen[:count] for chosen in self._trace.chosen(self._rows, layer)]

    def gate_input(self) -> Floats:
        """[T, D]."""
        assert self._trace.gate_inputs is not None
        return self._trace.gate_inputs[self._rows, self._layer]


def run_over(
    policy: ExpertPolicy, trace: Trace, after: Callable[[LayerPass], None] = lambda done: None
) -> ExpertPolicy:
    """Give the policy every event of the trace; after: called when a layer is computed."""
    group: int | None = None
    for number, item in enumerate(trace.passes):
        if item.group != group:
            group = item.group
            policy.begin_sequences()
        rows = slice(item.first, item.first + sum(item.tokens))
        assert trace.embeddings is not None
        assert trace.probabilities is not None
        policy.begin_pass(PassStart(item.phase, item.tokens, trace.embeddings[rows]))
        for layer in range(trace.layers):
            for micro_batch, part in enumerate(trace.micro_batches(number)):
                if policy.watches_gate:
                    policy.gate_entered(layer, micro_batch, TraceView(trace, part, layer))
                routing = Routing(
                    trace.chosen(part, layer),
                    trace.weights[part, layer],
                    trace.probabilities[part, layer],
                )
                policy.routed(layer, micro_batch, routing)
            policy.layer_routed()
            after(policy.computed())
        policy.end_pass()
    return policy
