"""Which sampler finds a measured grid's front soonest, in seconds that an engine was busy.

    python scripts/compare_samplers.py studies/reference/compute_bound.yaml --seeds 20

Every sampler runs the same simulated study: a trial costs what configuring and repeating cost when
the grid was measured, repeats follow the study's own rule, and what the front beats after a short
replicate ends there, whoever proposed it. Quality is evaluated once a group by every sampler and
counted for none. Ours pays for its trace and for profiling the machine. The hypervolume is of the
grid's mean figures, from its nadir plus 10 %. Prints a Markdown table; --curves FILE.csv keeps what
it was made of.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
from measure_grid import read_rows

from engine.profiled_timings import profiled_timings
from engine.protocol import MachineProfile, ModelFacts
from engine.trace import load_trace
from tuner import objective, pareto
from tuner.definition import StudyDefinition, load_definition
from tuner.domination import rivals_of
from tuner.front import build_front
from tuner.sampler import build_sampler
from tuner.search.candidates import Candidates
from tuner.search.guide import Guide
from tuner.search.proposer import Costs, Proposer
from tuner.space import Point, build_space
from tuner.statistics import interval, relative_half_width
from tuner.store.snapshots import TrialSnapshot
from tuner.trial import STEADY_METRICS
from tuner.twin import Predictions, Twin, predict_all

OBJECTIVES = ("output_tps", "tpot_ms", "quality")
SIGNS = [pareto.SIGNS[name] for name in OBJECTIVES]
SAMPLERS = ("ours", "ours without a twin", "tpe", "nsga2", "random", "grid")
LEVELS = (0.95, 0.99)
MOST_SHARE = 0.5  # of the grid's seconds: what takes longer has not arrived
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """One measured configuration. seconds: of configuring and of each repeat."""

    seconds: tuple[float, ...]
    samples: tuple[Mapping[str, float], ...]
    quality: float

    @property
    def truth(self) -> tuple[float, ...]:
        """Its objectives by all samples."""
        speeds = [statistics.fmean(s[name] for s in self.samples) for name in OBJECTIVES[:2]]
        return (*speeds, self.quality)


@dataclass
class Grid:
    """Everything of one reference study. rows: by candidate."""

    definition: StudyDefinition
    candidates: Candidates
    rows: list[Row]
    facts: ModelFacts
    document: Mapping[str, Any]
    trace: Path

    @property
    def total_s(self) -> float:
        """Seconds that measuring the grid took."""
        return sum(sum(row.seconds) for row in self.rows)

    def hypervolume(self, indices: Sequence[int]) -> float:
        """As a share of the whole grid's."""
        return self._volume(indices) / self._volume(range(len(self.rows)))

    def _volume(self, indices: Sequence[int]) -> float:
        columns = list(zip(*(row.truth for row in self.rows), strict=True))
        front = pareto.front([row.truth for row in self.rows], SIGNS)
        best = list(zip(*(self.rows[i].truth for i in front), strict=True))
        reference, spans = [], []
        for sign, column, kept in zip(SIGNS, columns, best, strict=True):
            nadir = min(kept) if sign > 0 else max(kept)
            span = max(column) - min(column) or 1.0
            reference.append(nadir - sign * 0.1 * span)
            spans.append(span)
        points = [
            [value / span for value, span in zip(self.rows[i].truth, spans, strict=True)]
            for i in indices
        ]
        scaled = [value / span for value, span in zip(reference, spans, strict=True)]
        return pareto.hypervolume(points, scaled, SIGNS)


def load_grid(path: Path) -> Grid:
    """From the files that measure_grid.py wrote. Every candidate must have been measured."""
    definition = load_definition(path, {})
    document = json.loads(path.with_suffix(".json").read_text())
    facts = ModelFacts.from_json(document["facts"])
    space = build_space(definition, facts, definition.load_workload())
    candidates = Candidates(space)
    rows: dict[int, Row] = {}
    for row in read_rows(path.with_suffix(".jsonl")):
        index = candidates.index_of(row["point"])
        assert index is not None, f"{row['point']} is no point of the space"
        quality = document["quality"][candidates.items[index].group]
        rows[index] = Row(tuple(row["seconds"]), tuple(row["samples"]), quality)
    missing = len(candidates) - len(rows)
    assert not missing, f"{missing} configurations were not measured: run measure_grid.py again"
    ordered = [rows[index] for index in range(len(candidates))]
    return Grid(definition, candidates, ordered, facts, document, path.with_suffix(".npz"))


def predictions_of(grid: Grid) -> Predictions:
    """As a study makes them: profiled timings, corrected by the default's time split."""
    profile = MachineProfile(**grid.document["profile"])
    timings = profiled_timings(profile, grid.facts, grid.definition.device)
    workload = grid.definition.load_workload()
    twin = Twin(grid.facts, load_trace(grid.trace), timings, workload.sequences)
    default = grid.candidates.index_of(grid.candidates.space.default())
    assert default is not None
    config = grid.candidates.items[default].config
    twin = twin.corrected_by(config, grid.document["default_split"])
    return predict_all(twin, grid.candidates, within_s=1e9)


@dataclass
class Simulation:
    """One study of one sampler and seed. curve: (engine seconds, share of the hypervolume)."""

    grid: Grid
    seed: int
    spent_s: float = 0.0
    trials: list[TrialSnapshot] = field(default_factory=list)
    found: list[int] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)

    def run(
        self, propose: Callable[[], Point | None], tell: Callable[[TrialSnapshot], None]
    ) -> None:
        """Until half of the grid's seconds are spent, all is found or nothing is proposed."""
        while self.spent_s < MOST_SHARE * self.grid.total_s:
            point = propose()
            if point is None:
                break
            trial = self._trial(point)
            self.trials.append(trial)
            tell(trial)
            self.curve.append((self.spent_s, self.grid.hypervolume(self.found)))
            if self.curve[-1][1] >= 1 - 1e-9:
                break

    def _trial(self, point: Point) -> TrialSnapshot:
        index = self.grid.candidates.index_of(point)
        assert index is not None
        row, rule = self.grid.rows[index], self.grid.definition.repeats
        order = list(range(len(row.samples)))
        random.Random(f"{self.seed} {index}").shuffle(order)
        self.spent_s += row.seconds[0]
        kept: list[Mapping[str, float]] = []
        state = "COMPLETE"
        for number in range(len(order)):
            self.spent_s += row.seconds[1 + number]
            kept.append(row.samples[order[number]])
            if number + 1 < rule.min:
                if self._beaten(kept, row.quality):
                    state = "DOMINATED"
                    break
            elif _steady(kept, rule.half_width):
                break
        if state == "COMPLETE" and index not in self.found:
            self.found.append(index)
        return _snapshot(len(self.trials), index, state, point, kept, row.quality)

    def _beaten(self, kept: Sequence[Mapping[str, float]], quality: float) -> bool:
        front = build_front(self.trials, OBJECTIVES)
        rivals = rivals_of(OBJECTIVES, front.members, self.trials)
        values = {name: [sample[name] for sample in kept] for name in OBJECTIVES[:2]}
        return rivals.beating(values, quality)[0] is not None


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
    quality: float,
) -> TrialSnapshot:
    metrics = {
        name: interval([sample[name] for sample in kept], "")
        for name in ("output_tps", "tpot_ms", "ttft_ms")
    }
    scores = {**{name: metrics[name].value for name in OBJECTIVES[:2]}, "quality": quality}
    return TrialSnapshot(
        number, number, state, None, None, point, scores, {}, {}, index, {}, metrics, None, None,
        NOW, NOW,
    )  # fmt: skip


def simulate(grid: Grid, name: str, seed: int, predictions: Predictions) -> Simulation:
    """One study."""
    simulation = Simulation(grid, seed)
    space = grid.candidates.space
    default = space.default()
    if name.startswith("ours"):
        twin = name == "ours"
        if twin:
            simulation.spent_s += grid.document["trace_s"] + grid.document["profile_s"]
        workload = grid.definition.load_workload()
        costs = Costs(tokens=workload.sequences * workload.output_tokens)
        logs = predictions.logs if twin else {}
        proposer = Proposer(grid.candidates, OBJECTIVES, grid.definition.constraints, logs, costs)
        guide = Guide(grid.candidates, proposer, Predictions(logs, 0, 0.0))
        first = [default, *([] if twin else space.precision_corners())]

        def propose() -> Point | None:
            if len(simulation.trials) < len(first):
                return first[len(simulation.trials)]
            return guide.propose(simulation.trials, ())

        simulation.run(propose, lambda trial: None)
        return simulation
    sampler = build_sampler(name, seed, space, 50)
    memory = optuna.create_study(
        sampler=sampler, directions=[objective.DIRECTIONS[one] for one in OBJECTIVES]
    )
    distributions = {
        p.name: optuna.distributions.CategoricalDistribution(p.choices) for p in space.parameters
    }
    memory.enqueue_trial(dict(default))
    asked: list[Any] = []

    def ask() -> Point | None:
        asked.append(memory.ask(distributions))
        return dict(asked[-1].params)

    def tell(trial: TrialSnapshot) -> None:
        memory.tell(asked[-1], [trial.scores[one] for one in OBJECTIVES])

    simulation.run(ask, tell)
    return simulation


def arrival(simulation: Simulation, level: float) -> float | None:
    """Engine seconds until this share of the hypervolume, None where it never came."""
    return next((spent for spent, share in simulation.curve if share >= level), None)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("definition", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--curves", type=Path)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    grid = load_grid(arguments.definition)
    predictions = predictions_of(grid)
    curves: list[tuple[str, int, float, float]] = []
    print(f"{grid.definition.name}: {len(grid.rows)} configurations, {grid.total_s:.0f} engine s\n")
    columns = [f"{level:.0%} of the hypervolume" for level in LEVELS]
    print("| sampler | " + " | ".join(columns) + " | share at 5 % of the seconds |")
    print("| --- | " + " | ".join("---" for _ in columns) + " | --- |")
    for name in arguments.samplers.split(","):
        done = [simulate(grid, name, seed, predictions) for seed in range(arguments.seeds)]
        cells = [_cell(grid, [arrival(one, level) for one in done]) for level in LEVELS]
        at_five = [_share_at(one, 0.05 * grid.total_s) for one in done]
        cells.append(f"{statistics.median(at_five):.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        curves += [(name, seed, *point) for seed, one in enumerate(done) for point in one.curve]
    if arguments.curves:
        with arguments.curves.open("w", newline="") as file:
            csv.writer(file).writerows([("sampler", "seed", "engine_s", "share"), *curves])
    return 0


def _cell(grid: Grid, arrivals: Sequence[float | None]) -> str:
    """The median over seeds as a share of the grid's seconds; what never arrived counts as late."""
    late = [MOST_SHARE * grid.total_s if one is None else one for one in arrivals]
    median, missing = statistics.median(late), sum(one is None for one in arrivals)
    text = f"{median:.0f} s ({median / grid.total_s:.1%})"
    if missing > len(late) / 2:
        text = f"over {MOST_SHARE:.0%}"
    return f"{text}, {missing} of {len(late)} never" if missing else text


def _share_at(simulation: Simulation, seconds: float) -> float:
    return max((share for spent, share in simulation.curve if spent <= seconds), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
