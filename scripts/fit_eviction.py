"""Fit the weights of `cache.eviction: hobbit` to a trace: `python scripts/fit_eviction.py`.

An Optuna study over the simplex (softmax of four numbers) maximises the hit rate of the cache at
one share of the experts, by giving a policy the events of the trace; nothing is timed or loaded.
HOBBIT (arXiv 2411.01433) fits its weights offline, too. Out: the weights for
`cache.options.weights`, and what other evictions reach beside them.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
import typer

from engine.config.settings import EngineConfig
from engine.errors import EngineError
from engine.facts.model import ModelFacts
from engine.policy.context import PolicyContext
from engine.policy.events import (
    PassStart,
    Routing,
)
from engine.policy.future import Future
from engine.policy.registry import build_policy
from engine.trace.trace import (
    Trace,
    load_trace,
)
from engine.types import EvictionName, ScopeName

OTHERS: tuple[EvictionName, ...] = ("lru", "lfu", "arc", "belady")


def hit_rate(trace: Trace, slots: int, overlay: dict[str, Any]) -> float:
    """Hits of a policy over the whole trace, as a share of look-ups."""
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
    """What a trace tells of its model; a cache without bytes needs no more."""
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
    """The best weights found and their hit rate; the first trial weighs all alike."""

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


def main(
    trace: Annotated[Path, typer.Argument(help="routing trace")],
    fraction: Annotated[float, typer.Option(help="percent of the experts in slots")] = 25.0,
    scope: Annotated[str, typer.Option(help="layer or shared")] = "layer",
    trials: Annotated[int, typer.Option(help="weights to try", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="of the sampler")] = 0,
) -> None:
    """Print the best weights on TRACE, their hit rate, and that of other evictions."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        recorded = load_trace(trace)
        slots = max(
            recorded.layers, round(facts_of(recorded).experts * recorded.layers * fraction / 100)
        )
        scoped = EngineConfig().overlay({"cache.scope": scope}).cache.scope
        weights, rate = fit(recorded, slots, scoped, trials, seed)
    except EngineError as error:
        raise typer.BadParameter(str(error)) from error
    rounded = ", ".join(f"{weight:.4f}" for weight in weights)
    print(f"cache.options.weights: [{rounded}]  # {slots} slots, {scope} scope, {trials} trials")
    print(f"hobbit {rate:.4f}")
    for name in OTHERS:
        found = hit_rate(recorded, slots, {"cache.eviction": name, "cache.scope": scope})
        print(f"{name} {found:.4f}")


if __name__ == "__main__":
    typer.run(main)
