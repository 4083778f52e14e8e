"""Quality: evaluated once for each key of what can change outputs, as a ratio to 16 bits.

In: a resolved config. Out: a QualityResult from the store, or from the engine where the key is
new. The `quality` of a config is bits per byte of the 16-bit model / bits per byte of the config.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.exactness import (
    ON_MISS,
    lossy_settings,
)
from engine.config.settings import EngineConfig
from engine.contract.report import (
    QualityReport,
    TaskResult,
)
from engine.errors import InfeasibleError
from engine.memory import plan
from engine.types import FailureClass
from tuner.definition.strict_yaml import load_yaml
from tuner.definition.study import QualityTasks
from tuner.engine_client.process import OnEvent
from tuner.engine_client.session import EngineSession
from tuner.errors import QualityError, WorkerError
from tuner.store.repository import Store
from tuner.store.snapshots import QualityResult

# One setting of everything that is exact or only rounds, for every evaluation.
CANONICAL: Mapping[str, Any] = {
    "cache.expert_bytes": "auto",
    "cache.eviction": "lru",
    "prefetch.predictor": "none",
    "prefetch.depth": 0,
    "batch.count": 1,
    "batch.size": 1,
    "prefill.chunk_tokens": EngineConfig().prefill.chunk_tokens,
}
SIXTEEN_BITS: Mapping[str, Any] = {
    "precision.bits": 16,
    "precision.dense_bits": 16,
    "precision.scheme": "uniform",
    "kv.bits": 16,
    "kv.keep_ratio": 1.0,
}
PACKAGES = ("expertune", "torch", "transformers", "lm_eval")
# A kill looks like too little memory, whoever sent it.
PASSING: frozenset[FailureClass] = frozenset({"crash", "timeout", "out_of_memory"})
REFERENCE_ATTEMPTS = 2  # in one trial
REFUSED_TRIALS = 2  # what failed for so many, attempts and all, fails for every other


@dataclass(frozen=True)
class QualityJudge:
    """Answers how good a config is, asking the engine only what the store does not know."""

    session: EngineSession
    store: Store
    model_id: int
    tasks: QualityTasks
    seed: int
    base: EngineConfig
    _references: list[QualityResult] = field(default_factory=list, init=False)
    _refusals: list[QualityError] = field(default_factory=list, init=False)

    def reference(self, on_event: OnEvent | None = None) -> QualityResult:
        """The 16-bit model, evaluated once for each model and tasks.

        It may take more than the study's budget where 16 bits do not fit at all. Raises
        QualityError when it cannot be evaluated; what fails again and again is tried no more, but
        tasks are, whose data may have come back.
        """
        if self._refusals and (
            self._refusals[0].failure not in PASSING or len(self._refusals) >= REFUSED_TRIALS
        ):
            raise self._refusals[0]
        try:
            if not self._references:
                self._references.append(self._evaluated_reference(on_event))
            return self._references[0]
        except WorkerError as error:
            refusal = QualityError(
                f"the 16-bit reference of {', '.join(self.tasks.tasks)} cannot be evaluated "
                f"({error}); name other --tasks, or study speed alone with --objectives "
                "output_tps,tpot_ms",
                error.failure,
            )
            if error.failure != "task":
                self._refusals.append(refusal)
            raise refusal from None

    def judge(self, config: EngineConfig, on_event: OnEvent | None = None) -> QualityResult:
        """The quality of a resolved config, at the canonical setting of what cannot change it."""
        return self._result(_canonical(config), on_event, reference=False)

    def known_ratio(self, config: EngineConfig) -> float | None:
        """The quality of a resolved config where it was evaluated already; asks no engine."""
        canonical = _canonical(config)
        key = quality_key(quality_dependencies(canonical, self.tasks, self.seed))
        known = self.store.quality(self.model_id, key)
        if known is None or not self._references:
            return None
        try:
            return quality_ratio(self._references[0].report, known.report)
        except QualityError:
            return None

    def _evaluated_reference(self, on_event: OnEvent | None) -> QualityResult:
        config = _within_reach(_canonical(self.base.overlay(SIXTEEN_BITS)), self.session)
        for _ in range(1, REFERENCE_ATTEMPTS):
            try:
                return self._result(config, on_event, reference=True)
            except WorkerError as error:
                if error.failure not in PASSING:
                    raise
        return self._result(config, on_event, reference=True)

    def _result(
        self, config: EngineConfig, on_event: OnEvent | None, reference: bool
    ) -> QualityResult:
        depends_on = quality_dependencies(config, self.tasks, self.seed)
        key = quality_key(depends_on)
        known = self.store.quality(self.model_id, key)
        if known is not None:
            return known
        self.session.configure(config)
        report = self.session.evaluate(
            tuple(self.tasks.tasks), self.tasks.options(self.seed), reference, on_event
        )
        result = self.store.keep_quality(self.model_id, key, depends_on, report)
        self.session.discard_journal()
        return result


def quality_ratio(reference: QualityReport, report: QualityReport) -> float:
    """1 = no loss. Without bits per byte: the mean metric above chance over the reference's.

    Tasks that 16 bits answer at chance level say nothing and do not count. Raises QualityError
    where nothing is left to compare.
    """
    if reference.bits_per_byte and report.bits_per_byte:
        return reference.bits_per_byte / report.bits_per_byte
    telling = [one for one in reference.tasks if _tells(one)]
    found = {(one.task, one.metric): one for one in report.tasks}
    pairs = [(one, found.get((one.task, one.metric))) for one in telling]
    wanted = sum(above_chance(one) for one, other in pairs if other)
    if not wanted:
        raise QualityError(
            "these tasks give no bits per byte and no metric above chance at 16 bits, so that "
            "quality cannot be compared: name other --tasks",
            "task",
        )
    return max(0.0, sum(above_chance(other) for _, other in pairs if other) / wanted)


def above_chance(result: TaskResult) -> float:
    """0 = guessing, 1 = all right; the value itself where guessing gives nothing."""
    chance = result.chance or 0.0
    return (result.value - chance) / (1 - chance)


def _tells(result: TaskResult) -> bool:
    """Whether more is better and this is more than guessing, by two standard errors."""
    surplus = result.value - (result.chance or 0.0)
    return result.higher_is_better is not False and surplus > 2 * (result.stderr or 0.0)


def quality_key(depends_on: Mapping[str, Any]) -> str:
    """16 hex digits of all that can change what the tasks say."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]


def quality_dependencies(config: EngineConfig, tasks: QualityTasks, seed: int) -> dict[str, Any]:
    """The settings that lose information, the tasks by content and options, and the versions.

    kv.max_tokens loses nothing of a text that fits, and cuts a longer one into windows.
    """
    return {
        "config": {**lossy_settings(config), "kv.max_tokens": config.kv.max_tokens},
        "tasks": [task_digest(task) for task in tasks.tasks],
        "options": tasks.options(seed).to_json(),
        "versions": package_versions(),
    }


def quality_group(config: EngineConfig) -> str:
    """Equal for resolved configs of one study whose quality is evaluated once for all of them."""
    canonical = _canonical(config)
    known = {**lossy_settings(canonical), "kv.max_tokens": canonical.kv.max_tokens}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def task_digest(task: str) -> str:
    """A task's name, or for a YAML file the hash of it and of the files it names."""
    path = Path(task)
    if path.suffix not in (".yaml", ".yml"):
        return task
    digest = hashlib.sha256(path.name.encode())
    digest.update(json.dumps(load_yaml(path), sort_keys=True, default=str).encode())
    for name in sorted(_named_files(load_yaml(path), path.parent)):
        digest.update(name.read_bytes())
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Installed versions of what computes; a package that is not installed is left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _within_reach(config: EngineConfig, session: EngineSession) -> EngineConfig:
    try:
        plan.resolve(config, session.facts)
    except InfeasibleError as error:
        return config.overlay({"budget.vram_bytes": error.smallest_bytes or 0})
    return config


def _canonical(config: EngineConfig) -> EngineConfig:
    """Where precision is decided on a miss, what decides misses stays as it is."""
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
