"""Loads a fully measured search space from the files that measure_grid.py wrote."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.facts.estimated_timings import profiled_timings
from engine.facts.machine import MachineProfile
from engine.facts.model import ModelFacts
from engine.trace.trace import load_trace
from experiments.measure_grid import precision_of, read_rows
from tuner.definition.objectives import SIGNS
from tuner.definition.study import StudyDefinition, load_definition
from tuner.pareto import dominance
from tuner.search.candidates import Candidates
from tuner.search.space import build_space
from tuner.search.twin import Predictions, Twin, predict_all
from tuner.study.prepare import TWIN_S

OBJECTIVES = ("output_tps", "tpot_ms", "quality")
SIGNS = [SIGNS[name] for name in OBJECTIVES]
BEYOND_NADIR = 0.1


@dataclass(frozen=True)
class Run:
    """A configuration measured in one round. seconds: of configuring and of each repeat."""

    seconds: tuple[float, ...]
    samples: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Row:
    """One configuration, with its run of every round."""

    runs: tuple[Run, ...]
    quality: float

    @property
    def truth(self) -> tuple[float, ...]:
        """Its objectives from all samples; every round has the same weight."""
        speeds = [
            statistics.fmean(statistics.fmean(s[name] for s in run.samples) for run in self.runs)
            for name in OBJECTIVES[:2]
        ]
        return (*speeds, self.quality)

    @property
    def seconds(self) -> float:
        """Seconds of measuring it once, averaged over rounds."""
        return statistics.fmean(sum(run.seconds) for run in self.runs)


@dataclass
class Grid:
    """All data of one reference study. rows: by candidate."""

    definition: StudyDefinition
    candidates: Candidates
    rows: list[Row]
    facts: ModelFacts
    document: Mapping[str, Any]
    trace: Path

    @property
    def total_s(self) -> float:
        """Seconds of measuring the grid once."""
        return sum(row.seconds for row in self.rows)

    def hypervolume(self, indices: Sequence[int]) -> float:
        """The hypervolume of these rows as a fraction of the whole grid's. The reference point lies
        BEYOND_NADIR of the spans below the front's nadir."""
        points, reference, whole = self._scaled
        found = dominance.hypervolume([points[i] for i in indices], reference, SIGNS)
        return found / whole

    @cached_property
    def _scaled(self) -> tuple[list[list[float]], list[float], float]:
        """Returns all points and the reference in units of each objective's span, and the whole
        volume."""
        truths = [row.truth for row in self.rows]
        best = [truths[i] for i in dominance.front(truths, SIGNS)]
        reference, spans = [], []
        for sign, column, kept in zip(
            SIGNS, zip(*truths, strict=True), zip(*best, strict=True), strict=True
        ):
            span = max(column) - min(column) or 1.0
            nadir = min(kept) if sign > 0 else max(kept)
            reference.append(nadir / span - sign * BEYOND_NADIR)
            spans.append(span)
        points = [[v / span for v, span in zip(truth, spans, strict=True)] for truth in truths]
        return points, reference, dominance.hypervolume(points, reference, SIGNS)


def load_grid(path: Path) -> Grid:
    """Reads the files that measure_grid.py wrote. Every candidate must have been measured."""
    definition = load_definition(path, {})
    document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    facts = ModelFacts.from_json(document["facts"])
    space = build_space(definition, facts, definition.load_workload())
    candidates = Candidates(space)
    runs: dict[int, list[Run]] = {}
    for row in read_rows(path.with_suffix(".jsonl")):
        index = candidates.index_of(row["point"])
        if index is None:
            sys.exit(f"{path.with_suffix('.jsonl')}: {row['point']} is no point of {path}")
        runs.setdefault(index, []).append(Run(tuple(row["seconds"]), tuple(row["samples"])))
    if missing := len(candidates) - len(runs):
        sys.exit(
            f"{path}: {missing} of {len(candidates)} configurations were not measured: run "
            "measure_grid.py again"
        )
    rows = [
        Row(tuple(runs[index]), document["quality"][precision_of(item.point)])
        for index, item in enumerate(candidates.items)
    ]
    return Grid(definition, candidates, rows, facts, document, path.with_suffix(".npz"))


def predictions_of(grid: Grid) -> Predictions:
    """Predicts as a study does: profiled timings, corrected by the default config's time split."""
    kept = grid.document["profile"]
    names = {field.name for field in dataclasses.fields(MachineProfile)}
    if not set(kept) <= names:
        sys.exit(f"{grid.definition.name}: its profile is of another release: measure it anew")
    profile = MachineProfile(**kept)
    together = grid.document.get("together", False)
    timings = profiled_timings(profile, grid.facts, grid.definition.device, together=together)
    workload = grid.definition.load_workload()
    twin = Twin(grid.facts, load_trace(grid.trace), timings, workload.sequences)
    default = grid.candidates.index_of(grid.candidates.space.default())
    assert default is not None
    config = grid.candidates.items[default].config
    twin = twin.corrected_by(config, grid.document["default_split"])
    return predict_all(twin, grid.candidates, TWIN_S)
