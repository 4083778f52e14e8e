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
from engine.contract.task_data import files_of
from engine.contract.task_file import is_task_file, read_task_file, with_members
from engine.errors import TaskError
from engine.files import json_digest
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
    """A task's name, or for a YAML file a hash of everything that it consists of.

    That is its keys with those of the files it includes, the modules of its functions, its data,
    and the files of a group's members. Raises TaskError for a file that cannot be read.
    """
    if not is_task_file(task):
        return task
    digest = hashlib.sha256()
    for file in with_members(read_task_file(Path(task))):
        digest.update(file.path.name.encode())
        digest.update(json.dumps(file.body, sort_keys=True, default=str).encode())
        for path in files_of(file):
            try:
                with path.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise TaskError(
                    f"{path}, which the task file {task} names, cannot be read: {error.strerror}"
                ) from None
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
