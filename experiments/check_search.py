"""Checks how honest a search is on measured grids: what it claims, and where it ends by itself.

    python -m experiments.run check_search

Simulates our sampler as compare_samplers does, but to its own end, and prints of each grid: how
many measured speeds lie within the interval that the search expected nine of ten to be in, just
before it ran them; the least fraction of the hypervolume at the end of any seed; trials and engine
seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.compare_samplers import REFERENCE, Simulation
from experiments.reference_grid import OBJECTIVES, Grid, load_grid, predictions_of
from tuner.definition.objectives import SPEEDS
from tuner.search.acquisition import Acquisition
from tuner.search.searcher import Searcher
from tuner.search.space import Point
from tuner.search.twin import Predictions
from tuner.store.snapshots import TrialSnapshot
from tuner.study.prepare import trial_costs


@dataclass
class Watched:
    """One simulated study. covered: whether each speed lay within its interval."""

    simulation: Simulation
    searcher: Searcher
    covered: list[bool] = field(default_factory=list)
    _expected: Mapping[str, float] = field(default_factory=dict)

    def propose(self) -> Point | None:
        """The next point, with what is expected of it kept."""
        trials = self.simulation.trials
        if not trials:
            point: Point | None = self.simulation.grid.candidates.space.default()
        elif self.searcher.exhausted(trials):
            return None
        else:
            point = self.searcher.propose(trials, ())
        self._expected = {} if point is None else self.searcher.predict(point, trials)
        return point

    def hear(self, trial: TrialSnapshot) -> None:
        """Compares a trial with what was expected, and keeps that as a study does."""
        self.simulation.trials[-1] = replace(trial, predicted=self._expected)
        for name in SPEEDS:
            found, low = trial.figures.get(name), self._expected.get(f"{name}_low")
            if name in OBJECTIVES and found is not None and low is not None:
                self.covered.append(low <= found.value <= self._expected[f"{name}_high"])


def watched(grid: Grid, seed: int, predictions: Predictions) -> Watched:
    """A study of this grid, run to its own end."""
    simulation = Simulation(grid, seed, enough=2.0)
    simulation.spent_s += grid.document["trace_s"] + grid.document["profile_s"]
    costs = trial_costs(grid.definition, grid.definition.load_workload())
    limits, logs = grid.definition.constraints, predictions.logs
    acquisition = Acquisition(grid.candidates, OBJECTIVES, limits, logs, costs)
    study = Watched(simulation, Searcher(grid.candidates, acquisition, predictions))
    simulation.run(study.propose, study.hear)
    return study


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("definitions", type=Path, nargs="*", help="default: all complete grids")
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    print("| grid | within the 90 % interval | least at its end | trials | engine seconds |")
    print("| --- | --- | --- | --- | --- |")
    complete = [p.with_suffix(".yaml") for p in sorted(REFERENCE.glob("*.json"))]
    for definition in arguments.definitions or complete:
        grid = load_grid(definition)
        predictions = predictions_of(grid)
        studies = [watched(grid, seed, predictions) for seed in range(arguments.seeds)]
        covered = [one for study in studies for one in study.covered]
        ends = [study.simulation.curve[-1].fraction for study in studies]
        trials = [len(study.simulation.trials) for study in studies]
        spent = max(study.simulation.spent_s for study in studies) / grid.total_s
        print(
            f"| {grid.definition.name} | {sum(covered) / len(covered):.1%} of {len(covered)} | "
            f"{min(ends):.3f} | {min(trials)} to {max(trials)} | at most {spent:.1%} |",
            flush=True,
        )
    return 0
