"""Measures every point of a study's space, so that samplers can be compared without an engine.

    python -m experiments.run measure_grid experiments/grids/compute_bound.yaml

Writes beside the definition: NAME.jsonl (one line per configuration and round: every sample of
every repeat, the seconds that each took, a sentinel series), NAME.npz (the routing trace),
NAME.json (model facts, machine, its profile, quality by precision). Resumable: points that the
files hold are not measured again. Each round runs the points in another seeded order, so that drift
of the machine does not look like an effect of a setting; several rounds distinguish a fast
configuration from a lucky one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.report import Report
from engine.contract.statistics import relative_half_width
from engine.facts.machine import probe
from tuner.cli.options import open_session
from tuner.definition.study import StudyDefinition, load_definition
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError
from tuner.folders import cache_folder, default_storage, resolve_model
from tuner.quality.judge import QualityJudge
from tuner.quality.ratio import quality_ratio
from tuner.search.candidates import Candidates
from tuner.search.space import SearchSpace, build_space
from tuner.search.twin import ROUNDS
from tuner.store.database import open_database
from tuner.store.repository import Store
from tuner.study.trial import STEADY_METRICS

SEED = 0
KEPT_METRICS = (
    "output_tps",
    "tpot_ms",
    "ttft_ms",
    "expert_hit_rate",
    "stall_ms_per_token",
    "transfer_bytes_per_token",
)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("definition", type=Path)
    parser.add_argument("--rounds", type=int, default=1, help="how often each one is measured")
    parser.add_argument("--most", type=int, default=0, help="stop after so many new ones")
    arguments = parser.parse_args()
    definition = load_definition(arguments.definition, {})
    rows = read_rows(arguments.definition.with_suffix(".jsonl"))
    with open_session(resolve_model(definition.model), definition.device) as session:
        workload = definition.load_workload()
        space = build_space(definition, session.facts, workload)
        record_trace(session, definition, space, arguments.definition.with_suffix(".npz"))
        candidates = Candidates(space)
        for item in {item.group: item for item in candidates.items}.values():
            session.configure(item.config)  # packing is a cost per model, not per configuration
        fresh = 0
        for number, index in in_order(len(candidates), arguments.rounds):
            point = dict(candidates.items[index].point)
            if sum(row["point"] == point for row in rows) > number:
                continue
            try:
                rows.append({"point": point, **measure(session, definition, space, point)})
            except WorkerError as error:
                sys.exit(
                    f"{point}: {error}\n(run it again, what was measured is kept; a point that "
                    "always fails does not belong into the space)"
                )
            with arguments.definition.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            fresh += 1
            print(f"{len(rows)} {rows[-1]['seconds']} {point}", flush=True)
            if fresh == arguments.most:
                return 0
        describe(session, definition, space, candidates, arguments.definition.with_suffix(".json"))
    return 0


def in_order(size: int, rounds: int) -> Iterator[tuple[int, int]]:
    """Yields (round, candidate); each round has its own order."""
    for number in range(rounds):
        order = list(range(size))
        random.Random(SEED + number).shuffle(order)
        yield from ((number, index) for index in order)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the finished configurations."""
    if not path.is_file():
        return []
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def record_trace(
    session: EngineSession, definition: StudyDefinition, space: SearchSpace, path: Path
) -> None:
    """Records the routing for the replay, one sequence at a time."""
    if path.is_file():
        return
    config = space.config(space.default()).overlay(
        {"batch.count": 1, "batch.size": 1, "prefetch.predictor": "none", "prefetch.depth": 0}
    )
    started = time.monotonic()
    session.configure(config)
    session.request(
        "trace",
        path=str(path.resolve()),
        workload=definition.load_workload().to_json(),
        repeats=ROUNDS,
        seed=0,
        gate_inputs=False,
    )
    path.with_suffix(".trace_s").write_text(f"{time.monotonic() - started:.2f}\n", encoding="utf-8")


def measure(
    session: EngineSession,
    definition: StudyDefinition,
    space: SearchSpace,
    point: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures one configuration, repeated as in a study. seconds: of configuring, then of each
    repeat; the first repeat includes the warm-up."""
    config: EngineConfig = space.config(point)
    rule, workload = definition.repeats, definition.load_workload()
    before = session.busy_s
    session.configure(config)
    seconds = [session.busy_s - before]
    samples: list[dict[str, float]] = []
    sentinel: list[list[float]] = []
    while len(samples) < rule.max:
        if len(samples) >= rule.min and steady(samples, rule.half_width):
            break
        before = session.busy_s
        report: Report = session.measure(
            workload, repeats=1, warm_up=not samples, seed=definition.seed + len(samples)
        )
        seconds.append(session.busy_s - before)
        values = {sample.metric: sample.value for sample in report.samples}
        samples.append({name: values[name] for name in KEPT_METRICS if name in values})
        sentinel.append([report.sentinel.compute_ms, report.sentinel.read_ms])
    return {
        "seconds": [round(one, 3) for one in seconds],
        "samples": samples,
        "sentinel": sentinel,
    }


def steady(samples: list[dict[str, float]], half_width: float) -> bool:
    """Whether the intervals are narrow enough."""
    return all(
        relative_half_width([sample[name] for sample in samples]) <= half_width
        for name in STEADY_METRICS
    )


def describe(
    session: EngineSession,
    definition: StudyDefinition,
    space: SearchSpace,
    candidates: Candidates,
    path: Path,
) -> None:
    """Writes what all rows share: facts, machine, profile, and the quality by precision."""
    hardware = probe(cache_folder())
    started = time.monotonic()
    profile = session.profile()
    profile_s = time.monotonic() - started
    together = session.decodes_together
    session.close()  # profiling leaves state in the process that must not affect trials
    split = time_split(session, definition, space)
    database = open_database(default_storage())
    try:
        store = Store(database)
        workload = definition.load_workload()
        study = store.begin_study(definition, session.facts, hardware, workload)
        judge = QualityJudge(
            session, store, study.model_id, definition.quality, definition.seed, space.base
        )
        reference = judge.reference()
        qualities = {}
        for item in candidates.items:
            precision = precision_of(item.point)
            if precision not in qualities:
                found = judge.judge(item.config)
                qualities[precision] = quality_ratio(reference.report, found.report)
        store.set_study_state(study.id, "FINISHED")
    finally:
        database.close()
    name = Path(definition.model).name  # local paths stay out of the file
    document = {
        "facts": {**session.facts.to_json(), "id": name, "path": name},
        "machine": {k: v for k, v in hardware.to_json().items() if k != "disk_folder"},
        "profile": profile.to_json(),
        "profile_s": profile_s,
        "together": together,
        "default_split": split,
        "trace_s": float(path.with_suffix(".trace_s").read_text(encoding="utf-8")),
        "quality": qualities,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def precision_of(point: Mapping[str, Any]) -> str:
    """The values of a point's settings that quality depends on, by their names' order."""
    return ",".join(str(point[name]) for name in sorted(point) if name.startswith("precision."))


def time_split(
    session: EngineSession, definition: StudyDefinition, space: SearchSpace
) -> dict[str, float]:
    """Measures the time split per token in the default config, beside the grid: a study corrects
    its replay with the split of its trial 0."""
    session.configure(space.config(space.default()))
    report = session.measure(definition.load_workload(), repeats=2, warm_up=True)
    names = [name for name in report.metrics if name.startswith("time_ms_per_token.")]
    return {name: report.metrics[name].value for name in names}
