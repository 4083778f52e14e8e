"""Quality keys: equal for configs that must have equal quality, so that each is evaluated once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config.exactness import ON_MISS, lossy_settings
from engine.config.settings import EngineConfig
from engine.files import json_digest
from tuner.definition.strict_yaml import load_yaml
from tuner.definition.study import QualityTasks

# One value for each setting that is exact or only rounds, used in every evaluation.
CANONICAL: Mapping[str, Any] = {
    "cache.expert_bytes": "auto",
    "cache.eviction": "lru",
    "prefetch.predictor": "none",
    "prefetch.depth": 0,
    "batch.count": 1,
    "batch.size": 1,
    "prefill.chunk_tokens": EngineConfig().prefill.chunk_tokens,
}


PACKAGES = ("expertune", "torch", "transformers", "lm_eval")


def quality_key(depends_on: Mapping[str, Any]) -> str:
    """16 hex digits over everything that can change the tasks' results."""
    return json_digest(depends_on)


def quality_dependencies(config: EngineConfig, tasks: QualityTasks, seed: int) -> dict[str, Any]:
    """The lossy settings, the tasks by content and options, and the package versions.

    kv.max_tokens loses nothing of a text that fits, and cuts a longer one into windows.
    """
    return {
        "config": {**lossy_settings(config), "kv.max_tokens": config.kv.max_tokens},
        "tasks": [task_digest(task) for task in tasks.tasks],
        "options": tasks.options(seed).to_json(),
        "versions": package_versions(),
    }


def quality_group(config: EngineConfig) -> str:
    """Equal for resolved configs of one study that share one quality evaluation."""
    canonical = canonical_config(config)
    known = {**lossy_settings(canonical), "kv.max_tokens": canonical.kv.max_tokens}
    return json_digest(known)


def task_digest(task: str) -> str:
    """A task's name, or for a YAML file a hash of it and of the files it names."""
    path = Path(task)
    if path.suffix not in (".yaml", ".yml"):
        return task
    digest = hashlib.sha256(path.name.encode())
    digest.update(json.dumps(load_yaml(path), sort_keys=True, default=str).encode())
    for name in sorted(_named_files(load_yaml(path), path.parent)):
        digest.update(name.read_bytes())
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that affect results; missing packages are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def canonical_config(config: EngineConfig) -> EngineConfig:
    """Overlays CANONICAL, unless precision is decided on a miss: then what decides misses stays."""
    if config.precision.scheme in ON_MISS:
        return config
    return config.overlay(CANONICAL)


def _named_files(data: Any, folder: Path) -> set[Path]:
    if isinstance(data, dict):
        return set().union(*(_named_files(value, folder) for value in data.values()))
    if isinstance(data, list):
        return set().union(*(_named_files(value, folder) for value in data))
    if isinstance(data, str) and 0 < len(data) < 200:
        path = folder / data
        try:
            return {path} if path.is_file() else set()
        except OSError:
            return set()
    return set()
