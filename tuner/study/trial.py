"""TrialRunner: runs one point of the space to an outcome. The trial boundary: no error passes it.

In: a point. Out: TrialOutcome, with every sample already stored. Errors become a state and a
failure class; only an interruption passes through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.report import Report
from engine.contract.statistics import relative_half_width
from engine.errors import InfeasibleError, TaskError
from engine.memory.plan import Resolved
from engine.types import format_bytes
from tuner.definition import objectives
from tuner.errors import OverBudgetError, QualityError, StoreError, StudyError, WorkerError
from tuner.formatting import format_count
from tuner.quality.judge import QualityJudge
from tuner.quality.ratio import quality_ratio
from tuner.search.space import Point
from tuner.store.outcome import TrialOutcome
from tuner.store.reading import Pool
from tuner.store.snapshots import QualityResult
from tuner.study.context import StudyContext, StudyState
from tuner.study.memory import MemoryBook, seen_path

log = logging.getLogger(__name__)

NOT_FITTING = ("does_not_fit", "out_of_memory")
# A config whose repeats have taken so long has enough of them with so few: the front's members are
# measured again after the search.
MOST_MEASURING_S, FEWEST_IF_SLOW = 60.0, 2
STEADY_METRICS = ("output_tps", "tpot_ms")


class TrialRunner:
    """Runs points of one study. predict: the predicted speeds of a point, {} without a
    prediction."""

    def __init__(
        self,
        context: StudyContext,
        state: StudyState,
        predict: Callable[[Point], Mapping[str, float]],
    ) -> None:
        self._context = context
        self._state = state
        self._predict = predict
        self._judge = _judge_of(context)
        workload, session = context.workload, context.session
        self._memory = MemoryBook(
            context.space,
            workload.prompt_tokens + workload.output_tokens,
            seen_path(context.hardware, context.space.facts, session.opened_device),
        )

    def run(self, trial_id: int, point: Point) -> TrialOutcome:
        """Measures a point, evaluates its quality, scores it."""
        before_s = self._context.session.busy_s
        outcome = self._run(trial_id, point)
        return replace(
            outcome,
            predicted=self._predict(point),
            engine_s=self._context.session.busy_s - before_s,
        )

    def _run(self, trial_id: int, point: Point) -> TrialOutcome:
        context = self._context
        budget_bytes = context.definition.budget.vram_bytes
        configuration_id: int | None = None
        plan: Mapping[str, Any] = {}
        try:
            resolved = context.space.resolve(point)
            reference = self._reference()
            context.session.refresh()
            configured = context.session.configure(resolved.config)
            plan = configured.memory.to_json()
            configuration_id = self._keep(configured)
            known = context.store.known_infeasible(context.study.id, configuration_id)
            if known is not None:
                return known
            try:
                pool, peak_bytes = self._measure_fairly(configuration_id, configured, trial_id)
            except OverBudgetError as error:
                configured = self._configure_smaller(configured, error)
                plan = configured.memory.to_json()
                configuration_id = self._keep(configured)
                pool, peak_bytes = self._measure(configuration_id, configured, trial_id)
            plan = {**plan, "external_peak_bytes": peak_bytes}
            quality = self._evaluate(configured.config, reference)
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
        except (QualityError, TaskError) as error:
            return TrialOutcome(
                "FAILED",
                error.failure,
                str(error),
                memory=plan,
                configuration_id=configuration_id,
            )
        except (StoreError, StudyError):
            raise  # there is nowhere to put an outcome, or no trial could have a better one
        except Exception as error:
            log.exception("trial %s failed", trial_id)
            return TrialOutcome("FAILED", "crash", f"{type(error).__name__}: {error}")
        return self._score(pool, quality, plan, configuration_id)

    def _keep(self, configured: Resolved) -> int:
        study = self._context.study
        return self._context.store.keep_configuration(
            study.model_id, study.workload_hash, configured.config, configured.memory
        )

    def _measure_fairly(
        self, configuration_id: int, configured: Resolved, trial_id: int
    ) -> tuple[Pool, int]:
        """Measures; if a used process exceeded the budget, tries again in a new one."""
        try:
            return self._measure(configuration_id, configured, trial_id)
        except OverBudgetError:
            if self._context.session.fresh:
                raise
        self._context.session.close()
        self._context.session.configure(configured.config)
        return self._measure(configuration_id, configured, trial_id)

    def _configure_smaller(self, configured: Resolved, error: OverBudgetError) -> Resolved:
        """Configures as much smaller a cache as the run exceeded the budget by; raises the error
        again if there is none."""
        context = self._context
        assert error.smallest_bytes is not None
        smaller = self._memory.shrunk(configured.config, error.smallest_bytes)
        if smaller is None:
            raise error
        over_bytes = error.smallest_bytes - configured.config.budget.vram_bytes
        fewer_bytes = configured.memory.slots_bytes - int(smaller.cache.expert_bytes)
        context.progress.note(
            f"this run took {format_bytes(over_bytes)} more than the budget: it is measured again "
            f"with {format_bytes(fewer_bytes)} less for experts, and the next configs leave as much"
        )
        context.session.close()
        return context.session.configure(smaller)

    def _measure(
        self, configuration_id: int, configured: Resolved, trial_id: int
    ) -> tuple[Pool, int]:
        """Measures at least one repeat, and more until the interval is narrow or time has been
        spent; pools earlier samples."""
        context, machine_id = self._context, self._context.study.machine_id
        config, began_s = configured.config, context.session.busy_s
        rule = context.definition.repeats
        on_front = configuration_id in self._state.incumbents.configurations
        pool = context.store.pool(configuration_id, machine_id)
        peak_bytes = 0
        for done in range(rule.max):
            count = len(pool.values.get("output_tps", ()))
            is_slow = context.session.busy_s - began_s > MOST_MEASURING_S
            fewest = min(rule.min, FEWEST_IF_SLOW) if is_slow else rule.min
            if done and count >= fewest and (is_slow or count >= rule.max or self._steady(pool)):
                break
            most = rule.min if count < rule.min else rule.max
            context.progress.repeats(count, most)
            report = self._repeat(warm_up=done == 0, number=count)
            peak_bytes = max(peak_bytes, report.memory.external_peak_bytes)
            _check_budget(report, config)
            context.store.add_samples(configuration_id, machine_id, trial_id, report)
            pool = context.store.pool(configuration_id, machine_id)
            if not on_front and count + 1 < rule.min:
                self._check_competitive(pool, config, peak_bytes)
        if peak_bytes:
            self._memory.learn(config, peak_bytes)
        return pool, peak_bytes

    def _repeat(self, *, warm_up: bool, number: int) -> Report:
        """One repeat; where the device refused memory beyond the budget, OverBudgetError."""
        context = self._context
        seed = context.definition.seed + number
        try:
            return context.session.measure(context.workload, repeats=1, warm_up=warm_up, seed=seed)
        except WorkerError as error:
            if error.failure == "out_of_memory" and error.smallest_bytes is not None:
                raise OverBudgetError(str(error), error.smallest_bytes) from error
            raise

    def _check_competitive(self, pool: Pool, config: EngineConfig, peak_bytes: int) -> None:
        known = self._judge.known_ratio(config) if self._judge is not None else None
        incumbent, bound = self._state.incumbents.beating(
            pool.values, known, config.budget.vram_bytes
        )
        if incumbent is not None:
            raise _PrunedError(incumbent, pool, bound, known is not None, peak_bytes)

    def _steady(self, pool: Pool) -> bool:
        limit = self._context.definition.repeats.half_width
        return all(relative_half_width(pool.values[name]) <= limit for name in STEADY_METRICS)

    def _reference(self) -> QualityResult | None:
        if self._judge is None:
            return None
        with self._context.progress.evaluating_reference():
            return self._judge.reference()

    def _evaluate(self, config: EngineConfig, reference: QualityResult | None) -> _Quality | None:
        if self._judge is None or reference is None:
            return None
        result = self._judge.judge(config)
        return _Quality(result, reference, quality_ratio(reference.report, result.report))

    def _pruned(
        self, pruned: _PrunedError, plan: Mapping[str, Any], configuration_id: int | None
    ) -> TrialOutcome:
        metrics = pruned.pool.metrics()
        quality, repeats = pruned.bound.get("quality"), metrics["output_tps"].n
        return TrialOutcome(
            "PRUNED",
            reason=f"after {format_count(repeats, 'repeat')}: trial {pruned.incumbent} beats the "
            "best that this could reach",
            scores=objectives.scores(metrics, quality, self._context.definition.objectives),
            violations=objectives.violations(
                metrics, quality, self._context.definition.constraints
            ),
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
            scores=objectives.scores(metrics, ratio, self._context.definition.objectives),
            violations=objectives.violations(metrics, ratio, self._context.definition.constraints),
            memory=plan,
            configuration_id=configuration_id,
            quality_id=quality.result.id if quality else None,
            reference_id=quality.reference.id if quality else None,
        )


def _judge_of(context: StudyContext) -> QualityJudge | None:
    """The quality evaluator; None if quality is not an objective."""
    definition = context.definition
    if "quality" not in definition.objectives:
        return None
    return QualityJudge(
        context.session,
        context.store,
        context.study.model_id,
        definition.quality,
        definition.seed,
        context.space.base,
    )


@dataclass(frozen=True)
class _Quality:
    """The results of a config and of the 16-bit model, and their ratio."""

    result: QualityResult
    reference: QualityResult
    ratio: float


class _PrunedError(Exception):
    """A front member dominates the optimistic bound of the measurements so far."""

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
    """Makes the configuration infeasible if memory measured from outside exceeds the budget."""
    peak_bytes, budget_bytes = report.memory.external_peak_bytes, config.budget.vram_bytes
    if budget_bytes and peak_bytes > budget_bytes:
        raise OverBudgetError(
            f"measured from outside ({report.memory.external_source}) it took "
            f"{format_bytes(peak_bytes)} ({peak_bytes} bytes), the budget is "
            f"{format_bytes(budget_bytes)} ({budget_bytes} bytes)",
            peak_bytes,
        )
