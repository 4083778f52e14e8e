"""Measures which sampler finds a measured grid's front soonest, in seconds of engine time.

    python -m experiments.run compare_samplers

Runs every sampler on every complete grid of experiments/grids/ (or on those named), prints a
Markdown table of each, and writes beside the grids NAME.csv (the plotted data) and NAME.svg.

Every sampler runs the same simulated study: a trial costs what configuring and repeating cost when
the grid was measured, repeats follow the study's own rule, and a trial that the front dominates
after a short replicate ends there, whichever sampler proposed it. Quality is evaluated once a group
by every sampler, at no cost. Our sampler pays for its trace and for profiling the machine.
Computation between trials (replays, fitting a Gaussian process) uses no engine and is not part of
these seconds; the last column lists it. The hypervolume is of the grid's means, from its nadir plus
10 %.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna

from engine.contract.statistics import mean_metric, relative_half_width
from engine.errors import InfeasibleError
from experiments.reference_grid import OBJECTIVES, Grid, Run, load_grid, predictions_of
from experiments.sampler_plots import (
    BUDGET,
    MOST_FRACTION,
    Curve,
    Job,
    Step,
    curves_of,
    fraction_at,
    plot,
    write_quantiles,
)
from tuner.definition import objectives
from tuner.pareto.probability import likely_front
from tuner.search.acquisition import Acquisition
from tuner.search.samplers import LEARN_FROM_PRUNED, open_sampler
from tuner.search.searcher import Searcher
from tuner.search.space import Point
from tuner.search.twin import Predictions
from tuner.store.snapshots import TrialSnapshot
from tuner.study.prepare import trial_costs
from tuner.study.pruning import incumbents_of
from tuner.study.trial import STEADY_METRICS

REFERENCE = Path(__file__).parent / "grids"
STOCK = ("tpe", "gp", "nsga2", "random", "grid")
SAMPLERS = ("ours", "ours without a twin", *STOCK)
LEVELS = (0.95, 0.99)
ENOUGH = 0.995
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Simulation:
    """One study of one sampler and seed. own_s: seconds of computation between trials; evaluated:
    groups whose quality is known."""

    grid: Grid
    seed: int
    spent_s: float = 0.0
    trials: list[TrialSnapshot] = field(default_factory=list)
    used: dict[int, int] = field(default_factory=dict)
    found: list[int] = field(default_factory=list)
    curve: Curve = field(default_factory=list)
    own_s: float = 0.0
    evaluated: set[str] = field(default_factory=set)
    enough: float = ENOUGH

    def run(
        self, propose: Callable[[], Point | None], notify: Callable[[TrialSnapshot], None]
    ) -> None:
        """Runs until MOST_FRACTION is spent, nearly everything is found or nothing is proposed. A
        point that does not fit costs nothing, as in a study."""
        while self.spent_s < MOST_FRACTION * self.grid.total_s:
            with self._computing():
                point = propose()
            if point is None:
                break
            trial = self._trial(point) or self._refused(point)
            self.trials.append(trial)
            with self._computing():
                notify(trial)
            if trial.state == "INFEASIBLE":
                continue
            fraction = self.grid.hypervolume(self.found)
            self.curve.append(Step(self.spent_s, fraction, self.own_s))
            if fraction >= self.enough:
                break

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.own_s += time.perf_counter() - started

    def _refused(self, point: Point) -> TrialSnapshot:
        space = self.grid.candidates.space
        try:
            space.resolve(point)
        except InfeasibleError as error:
            needed = error.smallest_bytes
        else:
            raise AssertionError(f"{point} fits and was not measured")
        excess = objectives.memory_violation(needed, self.grid.definition.budget.vram_bytes)
        return TrialSnapshot(
            len(self.trials), len(self.trials), "INFEASIBLE", None, None, point, {}, excess, {},
            None, None, {}, None, None, NOW, NOW,
        )  # fmt: skip

    def _trial(self, point: Point) -> TrialSnapshot | None:
        """Runs one visit with the repeats of one run; returns None if the point does not fit. A
        repeated proposal continues where the previous visit ended, and counts its repeats."""
        index = self.grid.candidates.index_of(point)
        if index is None:
            return None
        row, rule = self.grid.rows[index], self.grid.definition.repeats
        group = self.grid.candidates.items[index].group
        known = row.quality if group in self.evaluated else None
        order = self._order(index)
        before = self.used.get(index, 0)
        kept = [run.samples[number] for run, number in order[:before]]
        run = order[min(before, len(order) - 1)][0]
        visit = [number for one, number in order[before:] if one is run]
        self.spent_s += run.seconds[0] + (0.0 if visit else run.seconds[1])
        state = "COMPLETE"
        for place, number in enumerate(visit):
            self.spent_s += run.seconds[1 + place]  # the first repeat of a visit holds the warm-up
            kept.append(run.samples[number])
            if len(kept) < rule.min:
                if self._beaten(index, kept, known):
                    state = "PRUNED"
                    break
            elif len(kept) >= rule.max or _steady(kept, rule.half_width):
                break
        self.used[index] = len(kept)
        if state == "COMPLETE":
            known = row.quality
            self.evaluated.add(group)
            if index not in self.found:
                self.found.append(index)
        return _snapshot(len(self.trials), index, state, point, kept, known)

    def _order(self, index: int) -> list[tuple[Run, int]]:
        """Returns all repeats of a configuration run by run, in the random order of this seed."""
        rng = random.Random(f"{self.seed} {index}")
        runs = list(self.grid.rows[index].runs)
        rng.shuffle(runs)
        return [
            (run, n) for run in runs for n in rng.sample(range(len(run.samples)), len(run.samples))
        ]

    def _beaten(
        self, index: int, kept: Sequence[Mapping[str, float]], quality: float | None
    ) -> bool:
        front = likely_front(self.trials, OBJECTIVES)
        incumbents = incumbents_of(OBJECTIVES, front.members, self.trials)
        if index in incumbents.configurations:
            return False
        values = {name: [sample[name] for sample in kept] for name in OBJECTIVES[:2]}
        return incumbents.beating(values, quality)[0] is not None


def _steady(kept: Sequence[Mapping[str, float]], half_width: float) -> bool:
    return all(
        relative_half_width([sample[name] for sample in kept]) <= half_width
        for name in STEADY_METRICS
    )


def _snapshot(
    number: int,
    index: int,
    state: Any,
    point: Point,
    kept: Sequence[Mapping[str, float]],
    quality: float | None,
) -> TrialSnapshot:
    """Builds a trial. quality: None if it was not evaluated and is assumed to be 1, as in a
    study."""
    metrics = {
        name: mean_metric([sample[name] for sample in kept], "")
        for name in ("output_tps", "tpot_ms", "ttft_ms")
    }
    granted = {"quality": 1.0} if quality is None else {}
    speeds = {name: metrics[name].value for name in OBJECTIVES[:2]}
    scores = {**speeds, "quality": quality, **granted}
    return TrialSnapshot(
        number, number, state, None, None, point, scores, {}, {}, index, {}, metrics, None, None,
        NOW, NOW, bounds=granted,
    )  # fmt: skip


def simulate(grid: Grid, name: str, seed: int, predictions: Predictions) -> Curve:
    """Simulates one study of one sampler."""
    simulation = Simulation(grid, seed)
    if name.startswith("ours"):
        _run_ours(simulation, predictions if name == "ours" else None)
    else:
        _run_stock(simulation, name)
    return simulation.curve


def _run_ours(simulation: Simulation, predictions: Predictions | None) -> None:
    grid = simulation.grid
    space, workload = grid.candidates.space, grid.definition.load_workload()
    first = [space.default()]
    if predictions is None:
        first += space.precision_corners()
    else:
        simulation.spent_s += grid.document["trace_s"] + grid.document["profile_s"]
        simulation.own_s += predictions.spent_s
    logs = predictions.logs if predictions is not None else {}
    costs = trial_costs(grid.definition, workload)
    acquisition = Acquisition(grid.candidates, OBJECTIVES, grid.definition.constraints, logs, costs)
    searcher = Searcher(grid.candidates, acquisition, Predictions(logs, 0, 0.0))

    def propose() -> Point | None:
        if len(simulation.trials) < len(first):
            return first[len(simulation.trials)]
        if searcher.exhausted(simulation.trials):
            return None  # as a study ends
        return searcher.propose(simulation.trials, ())

    simulation.run(propose, lambda trial: None)


def _run_stock(simulation: Simulation, name: str) -> None:
    space = simulation.grid.candidates.space
    distributions = {
        p.name: optuna.distributions.CategoricalDistribution(p.choices) for p in space.parameters
    }
    directions = [objectives.OBJECTIVES[one].direction for one in OBJECTIVES]
    asked: list[Any] = []
    with open_sampler(name, simulation.seed, space, 50) as sampler:
        memory = optuna.create_study(sampler=sampler, directions=directions)
        memory.enqueue_trial(dict(space.default()))

        def ask() -> Point | None:
            asked.append(memory.ask(distributions))
            return dict(asked[-1].params)

        def notify(trial: TrialSnapshot) -> None:
            """Reports a trial to the sampler, as a study does."""
            for one in objectives.CONSTRAINTS:
                asked[-1].set_constraint(one, trial.violations.get(one, 0.0))
            if trial.state != "INFEASIBLE":
                memory.tell(asked[-1], [trial.scores[one] for one in OBJECTIVES])
            elif name in LEARN_FROM_PRUNED:
                memory.tell(asked[-1], state=optuna.trial.TrialState.PRUNED)
            else:
                memory.tell(asked[-1], [objectives.OBJECTIVES[one].worst for one in OBJECTIVES])

        simulation.run(ask, notify)


def arrival(curve: Curve, level: float) -> float | None:
    """Engine seconds until this fraction of the hypervolume; None if it was never reached."""
    return next((step.spent_s for step in curve if step.fraction >= level), None)


def computing(curve: Curve, level: float) -> float:
    """Seconds of computation until this fraction of the hypervolume; all of them if it was never
    reached."""
    last = curve[-1].own_s if curve else 0.0
    return next((step.own_s for step in curve if step.fraction >= level), last)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("definitions", type=Path, nargs="*", help="default: all complete grids")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    arguments = parser.parse_args()
    names = arguments.samplers.split(",")
    complete = [p.with_suffix(".yaml") for p in sorted(REFERENCE.glob("*.json"))]
    for definition in arguments.definitions or complete:
        grid = load_grid(definition)
        curves = compare(grid, names, arguments.seeds)
        print_table(grid, names, curves)
        write_quantiles(grid, names, curves, definition.with_suffix(".csv"))
        plot(grid, names, curves, definition.with_suffix(".svg"))
    return 0


def compare(grid: Grid, names: Sequence[str], seeds: int) -> dict[Job, Curve]:
    """Runs every sampler with every seed, in as many processes as there are CPUs."""
    predictions = predictions_of(grid)
    runs = [(name, seed) for name in names for seed in range(seeds)]
    jobs = [(grid, name, seed, predictions) for name, seed in runs]
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that share the CPUs
    context = multiprocessing.get_context("spawn")
    with context.Pool(initializer=_quietly) as pool:
        return dict(zip(runs, pool.starmap(simulate, jobs, chunksize=1), strict=True))


def _quietly() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")


def print_table(grid: Grid, names: Sequence[str], curves: Mapping[Job, Curve]) -> None:
    """Prints medians over seeds; runs that never reached the level count as late."""
    print(
        f"\n{grid.definition.name}: {len(grid.rows)} configurations, {grid.total_s:.0f} engine s\n"
    )
    columns = [f"{level:.0%} of the hypervolume" for level in LEVELS]
    columns += [f"fraction at {BUDGET:.0%} of the seconds", f"computing until {LEVELS[0]:.0%}"]
    print("| sampler | " + " | ".join(columns) + " |")
    print("| --- | " + " | ".join("---" for _ in columns) + " |")
    for name in names:
        own = curves_of(curves, name)
        cells = [_cell(grid, [arrival(one, level) for one in own]) for level in LEVELS]
        cells.append(f"{statistics.median(fraction_at(c, BUDGET * grid.total_s) for c in own):.3f}")
        cells.append(f"{statistics.median(computing(c, LEVELS[0]) for c in own):.1f} s")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _cell(grid: Grid, arrivals: Sequence[float | None]) -> str:
    late = [MOST_FRACTION * grid.total_s if one is None else one for one in arrivals]
    median, missing = statistics.median(late), sum(one is None for one in arrivals)
    text = f"{median:.0f} s ({median / grid.total_s:.1%})"
    if missing > len(late) / 2:
        text = f"over {MOST_FRACTION:.0%}"
    return f"{text}, {missing} of {len(late)} never" if missing else text
