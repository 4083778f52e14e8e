"""Fits the weights of `cache.eviction: hobbit` to a trace.

An Optuna study over the simplex (softmax of four numbers) maximizes the hit rate at one cache size
by feeding the events of the trace to a policy; nothing is timed or loaded. HOBBIT (arXiv
2411.01433) also fits its weights offline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.policy.context import PolicyContext
from engine.policy.events import PassStart, Routing
from engine.policy.future import Future
from engine.policy.registry import build_policy
from engine.trace.trace import Trace
from engine.types import EvictionName, ScopeName

OTHERS: tuple[EvictionName, ...] = ("lru", "lfu", "arc", "belady")


def hit_rate(trace: Trace, slots: int, overlay: dict[str, Any]) -> float:
    """Hits of a policy over the whole trace, as a fraction of look-ups."""
    future = Future(trace.layers)
    future.load(trace)
    context = PolicyContext(EngineConfig().overlay(overlay), facts_of(trace), future)
    policy = build_policy(context, slots, host_compute=False)
    group: int | None = None
    for number, item in enumerate(trace.passes):
        if item.group != group:
            group = item.group
            policy.begin_sequences()
        policy.begin_pass(PassStart(item.phase, item.tokens))
        for layer in range(trace.layers):
            for micro_batch, rows in enumerate(trace.micro_batches(number)):
                policy.routed(layer, micro_batch, Routing(trace.chosen(rows, layer)))
            policy.layer_routed()
            policy.computed()
        policy.end_pass()
    hits, misses = sum(policy.counters.hits.values()), sum(policy.counters.misses.values())
    return hits / max(hits + misses, 1)


def facts_of(trace: Trace) -> ModelFacts:
    """Facts of a model from its trace: enough for a cache that holds no bytes."""
    width = None if trace.probabilities is None else trace.probabilities.shape[-1]
    return ModelFacts(
        id="trace", path="", revision="", fingerprint="", family="", layers=trace.layers,
        moe_layers=trace.layers, experts=int(width or trace.experts.max() + 1),
        experts_per_token=trace.experts.shape[2], hidden_size=1, vocabulary=1, max_positions=1,
        non_expert_bytes=0, parts=(), record_bytes={}, expert_bytes={}, kv_bytes_per_token=0,
        predictors=(), has_tokenizer=False, in_place_16=False,
    )  # fmt: skip


def fit(
    trace: Trace, slots: int, scope: ScopeName, trials: int, seed: int
) -> tuple[tuple[float, ...], float]:
    """The best weights found and their hit rate; the first trial uses equal weights."""

    def weights_of(parameters: dict[str, float]) -> tuple[float, ...]:
        fractions = np.exp([parameters[f"logit_{index}"] for index in range(4)])
        return tuple(float(fraction) for fraction in fractions / fractions.sum())

    def objective(trial: optuna.Trial) -> float:
        for index in range(4):
            trial.suggest_float(f"logit_{index}", -4.0, 4.0)
        weights = weights_of(trial.params)
        overlay = {"cache.eviction": "hobbit", "cache.scope": scope}
        return hit_rate(trace, slots, {**overlay, "cache.options.weights": weights})

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({f"logit_{index}": 0.0 for index in range(4)})
    study.optimize(objective, n_trials=trials)
    return weights_of(study.best_params), float(study.best_value)


def fit_eviction(
    trace: Trace, percent: float = 25.0, scope: str = "layer", trials: int = 64, seed: int = 0
) -> dict[str, Any]:
    """Fit weights to a trace; returns them with their hit rate, beside other evictions.

    percent: of the experts in slots; scope: layer or shared; trials: number of weights to try.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    slots = max(trace.layers, round(facts_of(trace).experts * trace.layers * percent / 100))
    scoped = EngineConfig().overlay({"cache.scope": scope}).cache.scope
    weights, rate = fit(trace, slots, scoped, trials, seed)
    others = {
        name: hit_rate(trace, slots, {"cache.eviction": name, "cache.scope": scope})
        for name in OTHERS
    }
    return {"weights": weights, "slots": slots, "hit_rates": {"hobbit": rate, **others}}
