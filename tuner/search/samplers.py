"""Samplers by name: Optuna's, set up for small discrete spaces with constraints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import optuna

from tuner.errors import UsageError
from tuner.search.gp_sampler import ChildGpSampler
from tuner.search.space import SearchSpace

NAMES = ("auto", "tpe", "gp", "nsga2", "random", "grid")
# Only TPE learns from pruned trials; the others receive the worst values.
LEARN_FROM_PRUNED = ("auto", "tpe")


def check_sampler(name: str) -> None:
    """Raises UsageError for an unknown name."""
    if name not in NAMES:
        raise UsageError(f"--sampler {name}: write one of {', '.join(NAMES)}")


@contextlib.contextmanager
def open_sampler(name: str, seed: int, space: SearchSpace, trials: int) -> Iterator[Any]:
    """Yields a sampler; its child process, if any, ends with the block."""
    sampler = build_sampler(name, seed, space, trials)
    try:
        yield sampler
    finally:
        if isinstance(sampler, ChildGpSampler):
            sampler.close()


def build_sampler(name: str, seed: int, space: SearchSpace, trials: int) -> Any:
    """Builds an Optuna sampler. trials: the planned number, which sets how many points are random
    at first."""
    check_sampler(name)
    startup = max(4, min(10, trials // 3))
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "grid":
        choices = {p.name: list(p.choices) for p in space.parameters}
        return _Grid(choices, seed=seed)
    if name == "nsga2":
        population = max(4, min(50, trials // 3))
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    if name == "gp":
        return ChildGpSampler(seed, startup)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=startup)


class _Grid(optuna.samplers.GridSampler):  # type: ignore[misc]  # optuna is not followed
    """Its end is found by who asks for trials: Study.stop is allowed within Study.optimize only."""

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Nothing."""
