"""Samplers by name: Optuna's, set up for small discrete spaces with constraints."""

from __future__ import annotations

from typing import Any

import optuna

from tuner.errors import UsageError
from tuner.space import SearchSpace

NAMES = ("auto", "tpe", "nsga2", "random", "grid")
# Only TPE learns from pruned trials; the others are told the worst values.
LEARN_FROM_PRUNED = ("auto", "tpe")


def check_sampler(name: str) -> None:
    """UsageError for a sampler that this release does not run."""
    if name == "gp":
        raise UsageError(
            "--sampler gp computes with torch, which this program keeps out of its own process; "
            f"write one of {', '.join(NAMES)}"
        )
    if name not in NAMES:
        raise UsageError(f"--sampler {name}: write one of {', '.join(NAMES)}")


def build_sampler(name: str, seed: int, space: SearchSpace, trials: int) -> Any:
    """An Optuna sampler. trials: how many are planned, which sets how many begin at random."""
    check_sampler(name)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "grid":
        choices = {p.name: list(p.choices) for p in space.parameters}
        return optuna.samplers.GridSampler(choices, seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(
            seed=seed, population_size=max(4, min(50, trials // 3))
        )
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, n_startup_trials=max(4, min(10, trials // 3))
    )
