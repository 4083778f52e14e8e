"""TrialRunner: one point of the space, run to an outcome. The trial boundary: nothing escapes it.

In: a point. Out: TrialOutcome, with every sample already stored. What goes wrong becomes a state
and a class of failure; only an interruption passes through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.report import Report
from engine.contract.requests import Workload
from engine.errors import InfeasibleError
from engine.types import format_bytes
from tuner.definition import objectives
from tuner.definition.study import StudyDefinition
from tuner.engine_client.session import (
    Configured,
    EngineSession,
)
from tuner.errors import OverBudgetError, QualityError, StoreError, WorkerError
from tuner.formatting import format_count
from tuner.quality.judge import QualityJudge
from tuner.quality.ratio import quality_ratio
from tuner.search.space import (
    Point,
    SearchSpace,
)
from tuner.statistics import relative_half_width
from tuner.store.reading import Pool
from tuner.store.repository import Store, TrialOutcome
from tuner.store.snapshots import QualityResult, StudySnapshot
from tuner.study.pruning import Incumbents

log = logging.getLogger(__name__)

NOT_FITTING = ("does_not_fit", "out_of_memory")
STEADY_METRICS = ("output_tps", "tpot_ms")


@dataclass(frozen=True)
class TrialRunner:
    """Runs points of one study.

    judge: None where quality is no objective; notify: called with a phrase at each step;
    incumbents: the front that a point must not be pruned by, None where every point is measured to
    the end; predict: the twin's figures for a point, {} without one.
    """

    session: EngineSession
    store: Store
    study: StudySnapshot
    definition: StudyDefinition
    workload: Workload
    space: SearchSpace
    judge: QualityJudge | None
    notify: Callable[[str], None]
    incumbents: Callable[[], Incumbents] | None = None
    predict: Callable[[Point], Mapping[str, float]] = lambda point: {}

    def run(self, trial_id: int, point: Point) -> TrialOutcome:
        """Measure a point, evaluate its quality, score it."""
        before_s = self.session.busy_s
        outcome = self._run(trial_id, point)
        return replace(
            outcome,
            predicted=self.predict(point),
            engine_s=self.session.busy_s - before_s,
        )

    def _run(self, trial_id: int, point: Point) -> TrialOutcome:
        budget_bytes = self.definition.budget.vram_bytes
        configuration_id: int | None = None
        plan: Mapping[str, Any] = {}
        try:
            self.space.resolve(point)
            reference = self._reference()
            self.notify("configuring")
            self.session.refresh()
            configured = self.session.configure(self.space.config(point))
            plan = configured.memory.to_json()
            configuration_id = self._keep(configured)
            known = self.store.known_infeasible(self.study.id, configuration_id)
            if known is not None:
                return known
            pool, peak_bytes = self._measure_fairly(configuration_id, configured.config, trial_id)
            plan = {**plan, "external_peak_bytes": peak_bytes}
            quality = self._judge(configured.config, reference)
        except _PrunedError as pruned:
            return self._pruned(pruned, plan, configuration_id)
        except InfeasibleError as error:
            return TrialOutcome(
                "INFEASIBLE",
                "does_not_fit",
                str(error),
                violations=objectives.memory_violation(error.smallest_bytes, budget_bytes),
            )
        except WorkerError as error:
            infeasible = error.failure in NOT_FITTING
            return TrialOutcome(
                "INFEASIBLE" if infeasible else "FAILED",
                error.failure,
                str(error),
                violations=objectives.memory_violation(error.smallest_bytes, budget_bytes)
                if infeasible
                else None,
                memory=plan,
                configuration_id=configuration_id,
            )
        except QualityError as error:
            return TrialOutcome(
                "FAILED",
                error.failure,
                str(error),
                memory=plan,
                configuration_id=configuration_id,
            )
        except StoreError:
            raise  # without a store there is nowhere to put an outcome
        except Exception as error:
            log.exception("trial %s failed", trial_id)
            return TrialOutcome("FAILED", "crash", f"{type(error).__name__}: {error}")
        return self._score(pool, quality, plan, configuration_id)

    def _keep(self, configured: Configured) -> int:
        return self.store.keep_configuration(
            self.study.model_id, self.study.workload_hash, configured.config, configured.memory
        )

    def _measure_fairly(
        self, configuration_id: int, config: EngineConfig, trial_id: int
    ) -> tuple[Pool, int]:
        """Measure; what passed the budget in a used process gets a second chance in a new one."""
        try:
            return self._measure(configuration_id, config, trial_id)
        except OverBudgetError:
            if self.session.fresh:
                raise
        self.notify("measuring again in a fresh process")
        self.session.close()
        self.session.configure(config)
        return self._measure(configuration_id, config, trial_id)

    def _measure(
        self, configuration_id: int, config: EngineConfig, trial_id: int
    ) -> tuple[Pool, int]:
        """At least one repeat, more until the interval is narrow; pooled with earlier ones."""
        rule = self.definition.repeats
        incumbents = self.incumbents() if self.incumbents is not None else None
        if incumbents is not None and configuration_id in incumbents.configurations:
            incumbents = None
        pool = self.store.pool(configuration_id, self.study.machine_id)
        peak_bytes = 0
        for done in range(rule.max):
            count = len(pool.values.get("output_tps", ()))
            if done and count >= rule.min and (count >= rule.max or self._steady(pool)):
                break
            self.notify(f"measuring, repeat {count + 1}")
            report = self.session.measure(
                self.workload, repeats=1, warm_up=done == 0, seed=self.definition.seed + count
            )
            peak_bytes = max(peak_bytes, report.memory.external_peak_bytes)
            _check_budget(report, config)
            self.store.add_samples(configuration_id, self.study.machine_id, trial_id, report)
            pool = self.store.pool(configuration_id, self.study.machine_id)
            if incumbents is not None and count + 1 < rule.min:
                self._check_beaten(incumbents, pool, config, peak_bytes)
        return pool, peak_bytes

    def _check_beaten(
        self, incumbents: Incumbents, pool: Pool, config: EngineConfig, peak_bytes: int
    ) -> None:
        known = self.judge.known_ratio(config) if self.judge is not None else None
        incumbent, bound = incumbents.beating(pool.values, known, config.budget.vram_bytes)
        if incumbent is not None:
            raise _PrunedError(incumbent, pool, bound, known is not None, peak_bytes)

    def _steady(self, pool: Pool) -> bool:
        limit = self.definition.repeats.half_width
        return all(relative_half_width(pool.values[name]) <= limit for name in STEADY_METRICS)

    def _reference(self) -> QualityResult | None:
        if self.judge is None:
            return None
        self.notify("evaluating the 16-bit reference")
        return self.judge.reference(self._on_event)

    def _judge(self, config: EngineConfig, reference: QualityResult | None) -> _Quality | None:
        if self.judge is None or reference is None:
            return None
        self.notify("evaluating quality")
        result = self.judge.judge(config, self._on_event)
        return _Quality(result, reference, quality_ratio(reference.report, result.report))

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "progress":
            self.notify(f"{event.get('stage')} {event.get('done')}/{event.get('total')}")

    def _pruned(
        self, pruned: _PrunedError, plan: Mapping[str, Any], configuration_id: int | None
    ) -> TrialOutcome:
        metrics = pruned.pool.metrics()
        quality = pruned.bound.get("quality")
        return TrialOutcome(
            "PRUNED",
            reason=f"after {format_count(metrics['output_tps'].n, 'repeat')}: trial "
            f"{pruned.incumbent} "
            "beats the best that this could reach",
            scores=objectives.scores(metrics, quality, self.definition.objectives),
            violations=objectives.violations(metrics, quality, self.definition.constraints),
            memory={**plan, "external_peak_bytes": pruned.peak_bytes},
            configuration_id=configuration_id,
            bounds={"quality": quality} if quality is not None and not pruned.known else None,
        )

    def _score(
        self,
        pool: Pool,
        quality: _Quality | None,
        plan: Mapping[str, Any],
        configuration_id: int,
    ) -> TrialOutcome:
        metrics = pool.metrics()
        ratio = quality.ratio if quality else None
        return TrialOutcome(
            "COMPLETE",
            scores=objectives.scores(metrics, ratio, self.definition.objectives),
            violations=objectives.violations(metrics, ratio, self.definition.constraints),
            memory=plan,
            configuration_id=configuration_id,
            quality_id=quality.result.id if quality else None,
            reference_id=quality.reference.id if quality else None,
        )


@dataclass(frozen=True)
class _Quality:
    """What was said of a config and of 16 bits, and the one over the other."""

    result: QualityResult
    reference: QualityResult
    ratio: float


class _PrunedError(Exception):
    """A member of the front beats the bound of what was measured so far."""

    def __init__(
        self, incumbent: int, pool: Pool, bound: Mapping[str, float], known: bool, peak_bytes: int
    ) -> None:
        super().__init__(incumbent)
        self.incumbent = incumbent
        self.pool = pool
        self.bound = bound
        self.known = known
        self.peak_bytes = peak_bytes


def _check_budget(report: Report, config: EngineConfig) -> None:
    """An outside reading above the budget makes the configuration infeasible."""
    peak_bytes, budget_bytes = report.memory.external_peak_bytes, config.budget.vram_bytes
    if budget_bytes and peak_bytes > budget_bytes:
        raise OverBudgetError(
            f"measured from outside ({report.memory.external_source}) it took "
            f"{format_bytes(peak_bytes)} ({peak_bytes} bytes), the budget is "
            f"{format_bytes(budget_bytes)} ({budget_bytes} bytes)",
            peak_bytes,
        )
