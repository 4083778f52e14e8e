"""Chooses the candidate with the largest expected hypervolume improvement per second of cost.

In: candidates, predictions, measurements. Out: a proposal, or None if no candidate is expected to
improve enough. Speeds come from the posterior; quality is known by quality group, or taken from an
optimistic prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.config.settings import PrecisionConfig
from tuner.definition.objectives import SIGNS, SPEEDS, TABLE
from tuner.definition.study import Constraints
from tuner.pareto import dominance
from tuner.pareto.noise import START_DEVIATION
from tuner.search.candidates import Candidates
from tuner.search.hypervolume_improvement import BoxDecomposition
from tuner.search.posterior import Posterior, Regression

Floats = NDArray[np.float64]
# Optimistic prior of quality by bits, until the first config of a precision is evaluated.
OPTIMISTIC_QUALITY: Mapping[int, float] = {16: 1.0, 8: 1.0, 4: 0.99, 3: 0.96, 2: 0.9}
OPTIMISTIC_NON_EXPERT: Mapping[int, float] = {16: 1.0, 8: 1.0, 4: 0.99}
# Standard normal quantiles: the speeds of a candidate rise and fall together.
DRAWS: Floats = np.array([-1.65, -1.04, -0.67, -0.39, -0.13, 0.13, 0.39, 0.67, 1.04, 1.65])
MIN_IMPROVEMENT = 0.001  # of the hypervolume; a smaller expected improvement ends a study
BEYOND_NADIR = 0.1
SURELY = 3.0  # deviations: single starts of an engine are now and then a fifth off


@dataclass(frozen=True)
class Measured:
    """The measurements of a candidate that ran.

    values: means of speeds; deviations: of those means, relative; quality: None if it was not
    evaluated; complete: whether it may be on the front.
    """

    index: int
    values: Mapping[str, float]
    deviations: Mapping[str, float]
    quality: float | None
    complete: bool


@dataclass(frozen=True)
class Proposal:
    """A candidate to run. improvement: expected, as a fraction of the present hypervolume; seconds:
    expected cost."""

    index: int
    improvement: float
    seconds: float


@dataclass(frozen=True)
class Costs:
    """The cost of a trial: seconds beside running, passes over the workload, generated tokens per
    pass; seconds of evaluating a quality that no other trial evaluated."""

    overhead_s: float = 1.0
    passes: float = 5.0
    tokens: int = 128
    quality_s: float = 0.0


@dataclass
class Acquisition:
    """Ranks candidates. predictions: natural logarithms of each metric for all candidates, {}
    without replay."""

    candidates: Candidates
    objectives: Sequence[str]
    limits: Constraints
    predictions: Mapping[str, Floats] = field(default_factory=dict)
    costs: Costs = Costs()

    def __post_init__(self) -> None:
        self._regression = Regression(self.candidates.axes(), len(self.candidates))
        budgets = [item.config.budget.vram_bytes for item in self.candidates.items]
        self._budgets = np.array(budgets, dtype=np.int64)
        self._groups = [item.group for item in self.candidates.items]
        self._precisions = [
            (item.config.precision.bits, item.config.precision.prequantized)
            for item in self.candidates.items
        ]
        self._optimistic = np.array(
            [optimistic_quality(item.config.precision) for item in self.candidates.items]
        )

    def propose(
        self,
        measured: Sequence[Measured],
        taken: Sequence[int] = (),
        within_s: float | None = None,
    ) -> Proposal | None:
        """The best candidate that is neither measured nor taken and improves enough; else the
        predicted best of a precision, if it was not run and could still improve; else None.

        taken: candidates that run now, failed or do not fit; within_s: what a trial may cost.
        """
        ranked = self.rank(measured, taken, len(self.candidates))
        if within_s is not None:
            ranked = [one for one in ranked if one.seconds <= within_s]
        found = next((one for one in ranked if one.improvement >= MIN_IMPROVEMENT), None)
        if found is not None:
            return found
        owed = self._best_of_precisions(measured)
        owed &= self._not_beaten(sorted(owed), measured)
        return next((one for one in ranked if one.index in owed), None)

    def _not_beaten(self, rows: Sequence[int], measured: Sequence[Measured]) -> set[int]:
        """Which of these candidates could still improve the front, were they SURELY deviations
        better than expected."""
        optimistic = {}
        for name in SPEEDS:
            found = self.posterior(name, measured)
            mean = found.mean + SIGNS[name] * SURELY * found.deviation
            optimistic[name] = Posterior(mean, np.zeros(len(mean)))
        own = np.array(rows, dtype=int)
        gains, _ = self._gains(own, optimistic, self._quality(measured), measured)
        return {row for row, gain in zip(rows, gains, strict=True) if gain > 0}

    def _best_of_precisions(self, measured: Sequence[Measured]) -> set[int]:
        """The candidates of each precision with the best predicted speeds: a study that has not run
        them knows a precision only from its worse configs. Without predictions, of those that no
        trial ran."""
        if not self.predictions:
            ran = {self._precisions[one.index] for one in measured}
            rows = [i for i, own in enumerate(self._precisions) if own not in ran]
            return set(rows)
        best: set[int] = set()
        for precision in set(self._precisions):
            rows = [i for i, own in enumerate(self._precisions) if own == precision]
            for name in SPEEDS:
                best.add(max(rows, key=lambda i: SIGNS[name] * self.predictions[name][i]))
        return best

    def rank(
        self, measured: Sequence[Measured], taken: Sequence[int] = (), most: int = 1
    ) -> list[Proposal]:
        """The `most` best candidates by expected improvement per second."""
        closed = {one.index for one in measured} | set(taken)
        open_ = np.array([i for i in range(len(self.candidates)) if i not in closed], dtype=int)
        if not len(open_):
            return []
        posteriors = {name: self.posterior(name, measured) for name in SPEEDS}
        quality = self._quality(measured)
        gains, whole = self._gains(open_, posteriors, quality, measured)
        seconds = self._seconds(open_, posteriors["output_tps"], measured)
        order = np.argsort(-gains / seconds, kind="stable")[:most]
        return [
            Proposal(int(open_[i]), float(gains[i] / whole) if whole else 1.0, float(seconds[i]))
            for i in order
        ]

    def posterior(self, name: str, measured: Sequence[Measured]) -> Posterior:
        """The calibrated posterior of log(metric) for all candidates."""
        rows = [one for one in measured if one.values.get(name, 0.0) > 0]
        values = np.log([one.values[name] for one in rows])
        noise = np.array([one.deviations.get(name, START_DEVIATION) for one in rows])
        prior = self.predictions.get(name)
        if prior is None:
            prior = np.full(len(self.candidates), values.mean() if rows else 0.0)
        known = [one.index for one in rows]
        return self._regression.posterior(prior, known, values, noise).calibrated

    def _quality(self, measured: Sequence[Measured]) -> Floats:
        """The quality of all candidates: evaluated for their group, or the optimistic prior."""
        found = {
            self._groups[one.index]: one.quality for one in measured if one.quality is not None
        }
        pairs = zip(self._groups, self._optimistic, strict=True)
        return np.array([found.get(group, prior) for group, prior in pairs], dtype=float)

    def _gains(
        self,
        rows: NDArray[np.int_],
        posteriors: Mapping[str, Posterior],
        quality: Floats,
        measured: Sequence[Measured],
    ) -> tuple[Floats, float]:
        """Expected improvement of each of these candidates, and the present hypervolume."""
        draws = self._drawn(rows, posteriors, quality)  # [n, S, d], more is better
        allowed = self._allowed(rows, posteriors, quality)
        gains, whole = np.zeros(len(rows)), 0.0
        for budget in np.unique(self._budgets):  # a single one without a budget curve
            within = self._budgets[rows] <= budget
            fitting = [one for one in measured if self._budgets[one.index] <= budget]
            front = self._front(fitting, quality)  # [M, d]
            more, volume = _improvement(draws[within], allowed[within], front)
            gains[within] += more
            whole += volume
        return gains, whole

    def _drawn(
        self, rows: NDArray[np.int_], posteriors: Mapping[str, Posterior], quality: Floats
    ) -> Floats:
        columns = []
        for name in self.objectives:
            if name == "quality":
                columns.append(np.repeat(quality[rows][:, None], len(DRAWS), axis=1))
                continue
            posterior, sign = posteriors[name], SIGNS[name]
            spread = sign * DRAWS[None, :] * posterior.deviation[rows][:, None]
            columns.append(sign * np.exp(posterior.mean[rows][:, None] + spread))
        return np.stack(columns, axis=2)

    def _front(self, measured: Sequence[Measured], quality: Floats) -> Floats:
        points = [
            [
                quality[one.index] if name == "quality" else SIGNS[name] * one.values[name]
                for name in self.objectives
            ]
            for one in measured
            if one.complete and self._within(one, quality)
        ]
        return np.array(points, dtype=float).reshape(len(points), len(self.objectives))

    def _within(self, one: Measured, quality: Floats) -> bool:
        floor = self.limits.min_quality
        if floor is not None and quality[one.index] < floor:
            return False
        return all(
            limit is None or one.values.get(name, 0.0) <= limit
            for name, limit in self._speed_limits()
        )

    def _allowed(
        self, rows: NDArray[np.int_], posteriors: Mapping[str, Posterior], quality: Floats
    ) -> Floats:
        """1 where a draw keeps every limit, else 0, [n, S]."""
        allowed = np.ones((len(rows), len(DRAWS)))
        if self.limits.min_quality is not None:
            allowed *= (quality[rows] >= self.limits.min_quality)[:, None]
        for name, limit in self._speed_limits():
            if limit is not None:
                posterior = posteriors[name]
                # a good draw is a short time, as in _drawn
                spread = DRAWS[None, :] * posterior.deviation[rows][:, None]
                allowed *= np.exp(posterior.mean[rows][:, None] - spread) <= limit
        return allowed

    def _speed_limits(self) -> list[tuple[str, float | None]]:
        return [
            (name, getattr(self.limits, str(TABLE[name].limit)))
            for name in SPEEDS
            if TABLE[name].limit
        ]

    def _seconds(
        self, rows: NDArray[np.int_], speed: Posterior, measured: Sequence[Measured]
    ) -> Floats:
        once = self.costs.tokens / np.exp(speed.mean[rows])
        evaluated = {self._groups[one.index] for one in measured if one.quality is not None}
        new = np.array([self._groups[row] not in evaluated for row in rows], dtype=float)
        seconds: Floats = self.costs.overhead_s + self.costs.passes * once
        return seconds + self.costs.quality_s * new


def optimistic_quality(precision: PrecisionConfig) -> float:
    """Published codes are compared with their own values at 16 bits."""
    experts = 1.0 if precision.prequantized else OPTIMISTIC_QUALITY.get(precision.bits, 1.0)
    return experts * OPTIMISTIC_NON_EXPERT[precision.non_expert_bits]


def _improvement(draws: Floats, allowed: Floats, front: Floats) -> tuple[Floats, float]:
    """Expected growth [n] of a front's hypervolume by draws [n, S, d], and that hypervolume.

    The reference lies below the nadir of what is within reach by BEYOND_NADIR of the span of all of
    these configs: with a fraction of the span of the best of them, the ends of a front that is
    narrow in one objective would count for next to nothing.
    """
    if not len(draws):
        return np.zeros(0), 0.0
    centre = np.vstack([draws.mean(axis=1), front])
    span = np.ptp(centre, axis=0)
    span = np.where(span > 0, span, 1.0)
    reference = centre[dominance.non_dominated(centre)].min(axis=0) - BEYOND_NADIR * span
    scaled = (front - reference) / span
    gains = BoxDecomposition(scaled).improvement((draws - reference) / span) * allowed
    signs = [1] * centre.shape[1]
    whole = dominance.hypervolume(scaled.tolist(), [0.0] * len(signs), signs)
    return gains.mean(axis=1), whole
