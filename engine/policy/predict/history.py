"""Initializes a predictor's statistics by replaying a recorded trace through it."""

from __future__ import annotations

from collections.abc import Collection

from engine.errors import ConfigError
from engine.policy.events import Need, PassStart, Routing
from engine.policy.predict.base import Predictor
from engine.trace.trace import Trace, mismatch


def learn(predictor: Predictor, trace: Trace, layers: int, experts: int) -> None:
    """Replay the passes of the trace through the predictor and discard its predictions.

    layers, experts: of the model. Raises ConfigError if the trace is of another model or lacks what
    is needed.
    """
    check_history(trace, layers, experts, predictor.needs)
    for need, found in (("probabilities", trace.probabilities), ("embeddings", trace.embeddings)):
        if need in predictor.needs and found is None:
            raise ConfigError(
                f"the trace given as cache.options.trace has no {need}, and this predictor learns "
                f"from them: record one with {need}, or leave the trace out to start from nothing"
            )
    group: int | None = None
    for number in range(len(trace.passes)):
        if trace.passes[number].group != group:
            group = trace.passes[number].group
            predictor.begin_sequences()
        _replay_pass(predictor, trace, number)
    predictor.begin_sequences()


def check_history(trace: Trace, layers: int, experts: int, needs: Collection[Need] = ()) -> None:
    """Raise ConfigError if the trace cannot belong to a model with this many MoE layers and
    experts per layer. needs: what is read of it."""
    if (wrong := mismatch(trace, layers, experts, needs)) is not None:
        raise ConfigError(f"the trace given as cache.options.trace {wrong}")


def _replay_pass(predictor: Predictor, trace: Trace, number: int) -> None:
    item = trace.passes[number]
    rows = slice(item.first, item.first + sum(item.tokens))
    known = trace.probabilities if "probabilities" in predictor.needs else None
    embeddings = trace.embeddings if "embeddings" in predictor.needs else None
    predictor.begin_pass(
        PassStart(item.phase, item.tokens, None if embeddings is None else embeddings[rows])
    )
    for layer in range(trace.layers):
        for micro_batch, part in enumerate(trace.micro_batches(number)):
            probabilities = None if known is None else known[part, layer]
            weights = None if trace.weights is None else trace.weights[part, layer]
            routing = Routing(trace.chosen(part, layer), weights, probabilities)
            predictor.routed(layer, micro_batch, routing)
    predictor.end_pass()
