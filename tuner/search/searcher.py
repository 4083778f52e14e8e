"""The searcher: predicts points, proposes the next one, and detects when the search is
exhausted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.definition.objectives import SPEEDS
from tuner.pareto.noise import START_DEVIATION, mean_error_of, pooled_deviation
from tuner.search.acquisition import Acquisition, Measured
from tuner.search.candidates import Candidates
from tuner.search.posterior import COVERED, COVERED_DEVIATIONS
from tuner.search.space import Point
from tuner.search.twin import Predictions
from tuner.store.snapshots import FINISHED_STATES, MEASURED_STATES, TrialSnapshot

ADAPTION, LEAST_WIDENING = 0.5, 0.5  # of intervals, in logarithms; 0.2 to 0.8 do about as well
WIDEST = 50.0  # half of an interval, in logarithms: its ends are figures that can be stored
FEWEST_TRIALS = 6  # finished trials required before a study may end early


@dataclass(frozen=True)
class Searcher:
    """The search of one study."""

    candidates: Candidates
    acquisition: Acquisition
    predictions: Predictions

    def predict(self, point: Point, trials: Sequence[TrialSnapshot] = ()) -> Mapping[str, float]:
        """The predicted speeds of a point, {} without a prediction; and by `<speed>_low` and
        `_high` the interval which, after these trials, holds nine of ten."""
        index = self.candidates.index_of(point)
        if index is None:
            return {}
        measured, _ = self._known(trials, ())
        others = [one for one in measured if one.index != index]
        found = dict(self.predictions.of(index))
        wider = widening(trials)
        for name in SPEEDS if found and others else ():
            posterior = self.acquisition.posterior(name, others)
            spread = math.hypot(
                float(posterior.deviation[index]), posterior.noise * START_DEVIATION
            )
            half = min(WIDEST, wider * COVERED_DEVIATIONS * spread)
            middle = float(posterior.mean[index])
            found[f"{name}_low"] = math.exp(middle - half)
            found[f"{name}_high"] = math.exp(middle + half)
        return found

    def propose(
        self,
        trials: Sequence[TrialSnapshot],
        running: Sequence[Point],
        within_s: float | None = None,
    ) -> Point | None:
        """The point with the largest expected improvement per second that is neither measured nor
        running; None if no point is left. within_s: what its trial may take, if any does."""
        measured, taken = self._known(trials, running)
        chosen = self.acquisition.propose(measured, taken, within_s)
        if chosen is None:
            chosen = next(iter(self.acquisition.rank(measured, taken)), None)
        return None if chosen is None else dict(self.candidates.items[chosen.index].point)

    def exhausted(self, trials: Sequence[TrialSnapshot], within_s: float | None = None) -> bool:
        """Whether no candidate whose trial takes at most within_s seconds is expected to add
        MIN_IMPROVEMENT to the hypervolume, and none is the best of a precision that could."""
        finished = sum(trial.state in FINISHED_STATES for trial in trials)
        measured, taken = self._known(trials, ())
        if finished >= FEWEST_TRIALS:
            return self.acquisition.propose(measured, taken, within_s) is None
        if within_s is None:
            return False
        ranked = self.acquisition.rank(measured, taken, len(self.candidates))
        return all(one.seconds > within_s for one in ranked)

    def _known(
        self, trials: Sequence[TrialSnapshot], running: Sequence[Point]
    ) -> tuple[list[Measured], list[int]]:
        spread = {name: pooled_deviation(trials, name) for name in SPEEDS}
        measured: dict[int, Measured] = {}
        taken: list[int] = []
        for trial in trials:
            index = self.candidates.index_of(trial.params)
            if index is None:
                continue
            if trial.state in MEASURED_STATES:
                measured[index] = _measured(index, trial, spread)
            elif trial.state in FINISHED_STATES:
                taken.append(index)
        taken += [i for point in running if (i := self.candidates.index_of(point)) is not None]
        return list(measured.values()), taken


def widening(trials: Sequence[TrialSnapshot]) -> float:
    """How much wider intervals have to be than the posterior says, by how those of these trials
    held: each miss widens the next ones, each hit narrows them a little, so that in the long run
    nine of ten hold whatever the posterior has wrong (Gibbs and Candes, Adaptive Conformal
    Inference Under Distribution Shift, 2021)."""
    factor = 1.0
    for trial in sorted(trials, key=lambda trial: trial.number):
        for name in SPEEDS:
            found, low = trial.figures.get(name), trial.predicted.get(f"{name}_low")
            if found is None or low is None:
                continue
            missed = not low <= found.value <= trial.predicted[f"{name}_high"]
            step = math.exp(ADAPTION * (missed - (1 - COVERED)))
            factor = max(LEAST_WIDENING, factor * step)
    return factor


def _measured(index: int, trial: TrialSnapshot, spread: Mapping[str, float]) -> Measured:
    speeds = {name: trial.figures[name] for name in SPEEDS if name in trial.figures}
    return Measured(
        index,
        {name: metric.value for name, metric in speeds.items()},
        {name: mean_error_of(trial, name, spread[name]) for name in speeds},
        None if "quality" in trial.bounds else trial.scores.get("quality"),
        trial.state == "COMPLETE",
    )
