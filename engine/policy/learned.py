"""Loads recorded traces and trained predictor weights for policies."""

from __future__ import annotations

from pathlib import Path

from engine.config.settings import EngineConfig
from engine.derived.arrays import adopt_arrays, read_arrays
from engine.derived.file import DerivedKind
from engine.errors import ConfigError, UnreadableError
from engine.facts.model import ModelFacts
from engine.policy.events import Floats
from engine.trace.trace import Trace, load_trace

LEARNED = DerivedKind(
    "file of trained predictors", 1, "train them again with `tune train`", kept_aside=True
)


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
    if not named:
        return adopt_arrays(learned_path(facts, cache_folder), LEARNED) or {}
    path = Path(str(named))
    try:
        return read_arrays(path, LEARNED)
    except (FileNotFoundError, UnreadableError) as error:
        why = "there is none" if isinstance(error, FileNotFoundError) else error.reason
        raise ConfigError(
            f"prefetch.options.weights = {path} cannot be read ({why}): train them with "
            "`tune train predictor`"
        ) from None


def learned_path(facts: ModelFacts, cache_folder: Path) -> Path:
    """The path of a model's trained predictors."""
    return cache_folder / "predictors" / f"{facts.fingerprint}.npz"
