"""Quality: a ratio to the 16-bit model, evaluated once per key of the settings that affect outputs.

In: a resolved config. Out: a QualityResult from the store, or from the engine if the key is new.
The `quality` of a config is bits per byte of the 16-bit model / bits per byte of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.memory import plan
from engine.types import FailureClass
from tuner.definition.study import QualityTasks
from tuner.engine_client.session import EngineSession
from tuner.errors import QualityError, StudyError, UsageError, WorkerError
from tuner.quality.key import canonical_config, quality_dependencies, quality_key
from tuner.quality.ratio import quality_ratio
from tuner.store.repository import Store
from tuner.store.snapshots import QualityResult

SIXTEEN_BITS: Mapping[str, Any] = {
    "precision.bits": 16,
    "precision.non_expert_bits": 16,
    "precision.scheme": "uniform",
    "kv.bits": 16,
    "kv.keep_fraction": 1.0,
}
# A kill looks like a lack of memory, whoever sent it.
PASSING: frozenset[FailureClass] = frozenset({"crash", "timeout", "out_of_memory"})
REFERENCE_ATTEMPTS = 2  # in one trial
REFUSED_TRIALS = 2  # after failing in so many trials, all attempts each, it is not tried again


@dataclass(frozen=True)
class QualityJudge:
    """Evaluates the quality of configs; asks the engine only for what the store does not have."""

    session: EngineSession
    store: Store
    model_id: int
    tasks: QualityTasks
    seed: int
    base: EngineConfig
    _references: list[QualityResult] = field(default_factory=list, init=False)
    _refusals: list[QualityError] = field(default_factory=list, init=False)

    def reference(self) -> QualityResult:
        """Returns the result of the 16-bit model, evaluated once for each model and tasks.

        It may take more than the study's budget if 16 bits do not fit at all. Raises QualityError
        when it cannot be evaluated; after repeated failures it is not tried again, except for
        tasks, whose data may have come back. Raises StudyError if no trial could succeed: a task
        is broken, or nothing can be compared with its results.
        """
        if self._refusals and (
            self._refusals[0].failure not in PASSING or len(self._refusals) >= REFUSED_TRIALS
        ):
            raise self._refusals[0]
        try:
            if not self._references:
                self._references.append(_telling(self._evaluated_reference()))
            return self._references[0]
        except WorkerError as error:
            refusal = QualityError(
                f"the 16-bit reference of {', '.join(self.tasks.tasks)} cannot be evaluated "
                f"({error}); name other --tasks, or study speed alone with --objectives "
                "output_tps,tpot_ms",
                error.failure,
            )
            if error.failure == "task" and error.worker_exit_code == UsageError.exit_code:
                raise StudyError(str(refusal)) from None
            if error.failure != "task":
                self._refusals.append(refusal)
            raise refusal from None

    def judge(self, config: EngineConfig) -> QualityResult:
        """Evaluates a resolved config, with canonical values for settings that cannot change
        quality."""
        return self._result(canonical_config(config), reference=False)

    def known_ratio(self, config: EngineConfig) -> float | None:
        """The quality of a resolved config if it was evaluated already, else None; calls no
        engine."""
        canonical = canonical_config(config)
        key = quality_key(quality_dependencies(canonical, self.tasks, self.seed))
        known = self.store.quality(self.model_id, key)
        if known is None or not self._references:
            return None
        try:
            return quality_ratio(self._references[0].report, known.report)
        except QualityError:
            return None

    def _evaluated_reference(self) -> QualityResult:
        config = _within_reach(canonical_config(self.base.overlay(SIXTEEN_BITS)), self.session)
        for _ in range(1, REFERENCE_ATTEMPTS):
            try:
                return self._result(config, reference=True)
            except WorkerError as error:
                if error.failure not in PASSING:
                    raise
        return self._result(config, reference=True)

    def _result(self, config: EngineConfig, reference: bool) -> QualityResult:
        depends_on = quality_dependencies(config, self.tasks, self.seed)
        key = quality_key(depends_on)
        known = self.store.quality(self.model_id, key)
        if known is not None:
            return known
        self.session.configure(config)
        report = self.session.evaluate(
            tuple(self.tasks.tasks), self.tasks.options(self.seed), reference
        )
        result = self.store.keep_quality(self.model_id, key, depends_on, report)
        self.session.discard_journal()
        return result


def _telling(reference: QualityResult) -> QualityResult:
    try:
        quality_ratio(reference.report, reference.report)
    except QualityError as error:
        raise StudyError(f"{error}, or study speed alone with --objectives output_tps") from None
    return reference


def _within_reach(config: EngineConfig, session: EngineSession) -> EngineConfig:
    try:
        plan.resolve(config, session.facts)
    except InfeasibleError as error:
        return config.overlay({"budget.vram_bytes": error.smallest_bytes or 0})
    return config
