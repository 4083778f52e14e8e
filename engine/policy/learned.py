"""Loads recorded traces and trained predictor weights for policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.config.settings import EngineConfig
from engine.errors import ConfigError
from engine.facts.model import ModelFacts
from engine.policy.events import Floats
from engine.trace.trace import Trace, load_trace


def load_history(config: EngineConfig) -> Trace | None:
    """The trace for policies' initial statistics: `prefetch.options.trace`, else
    `cache.options.trace`."""
    path = config.prefetch.options.get("trace") or config.cache.options.get("trace")
    return load_trace(Path(str(path))) if path else None


def load_learned(config: EngineConfig, facts: ModelFacts, cache_folder: Path) -> dict[str, Floats]:
    """Arrays of trained predictors: `prefetch.options.weights`, else the file in the cache folder.

    Raises ConfigError if the named file cannot be read.
    """
    named = config.prefetch.options.get("weights")
    path = Path(str(named)) if named else learned_path(facts, cache_folder)
    if not named and not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"prefetch.options.weights = {path} cannot be read ({error}): train them with "
            "`tune train predictor`"
        ) from None


def learned_path(facts: ModelFacts, cache_folder: Path) -> Path:
    """The path of a model's trained predictors."""
    return cache_folder / "predictors" / f"{facts.fingerprint}.npz"
