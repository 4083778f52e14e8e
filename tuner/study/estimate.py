"""Plans a study before it runs: its space, what fits, a rough time.

The time assumes that every trial runs to its end, at the machine's general speeds. `check` compares
it afterwards with the actual time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.errors import InfeasibleError
from engine.facts.estimated_timings import profiled_timings
from engine.facts.machine import probe
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, at
from engine.memory.plan import MemoryPlan
from tuner.definition.study import StudyDefinition
from tuner.definition.workload import summarize_workload
from tuner.engine_client.machine_profile import machine_profile
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError
from tuner.folders import cache_folder
from tuner.formatting import format_duration
from tuner.quality.key import quality_group
from tuner.search.space import SearchSpace, build_space
from tuner.search.twin import ROUNDS
from tuner.store.snapshots import StudySnapshot
from tuner.study.prepare import CONFIGURE_S, TWIN_S, WARM_UPS

# Typical seconds beside computing (docs/lab/): starting an engine; lm-eval's own start; replaying
# one config.
START_S, TASKS_S, REPLAY_S = 4.0, 5.0, 0.1
CONFIRMED = 3  # typical number of front members
ITEM_TOKENS = 120
ITEMS = 100  # of a task without --limit; few tasks are this short


@dataclass(frozen=True)
class StudyPlan:
    """The plan of a study. checked: number of memory layouts checked; fitting: how many of them
    fit; estimate: rough seconds by stage, {} if the machine could not be measured."""

    model: str
    space: SearchSpace
    workload: Workload
    trials: int
    checked: int
    fitting: int
    estimate: Mapping[str, float]

    @property
    def estimate_s(self) -> float | None:
        """The total of all stages; None without an estimate."""
        return sum(self.estimate.values()) if self.estimate else None

    def to_json(self) -> dict[str, Any]:
        """The document of `tune --dry-run --json`."""
        return {
            "plan": {
                "model": self.model,
                "space": {p.name: list(p.choices) for p in self.space.parameters},
                "points": self.space.size,
                "layouts": self.checked,
                "layouts_that_fit": self.fitting,
                "default": self.space.default(),
                "workload": summarize_workload(self.workload),
                "trials": self.trials,
                "estimate_s": self.estimate_s,
                "estimate_by_stage_s": dict(self.estimate),
            }
        }


def plan_study(definition: StudyDefinition, session: EngineSession) -> StudyPlan:
    """Examines the space without running a trial.

    Raises InfeasibleStudyError with the smallest budget when nothing fits.
    """
    facts = session.describe()
    workload = definition.fitted_workload(facts).workload
    space = build_space(definition, facts, workload)
    checked = fitting = 0
    for point in space.memory_points():
        checked += 1
        fitting += space.fits(point)
    trials = min(definition.trials, space.size)
    try:
        profile = machine_profile(session, probe(cache_folder()))
    except WorkerError:
        estimate = {}
    else:
        timings = profiled_timings(profile, space.facts, session.opened_device)
        estimate = _estimate(definition, space, workload, timings, trials)
    return StudyPlan(space.facts.id, space, workload, trials, checked, fitting, estimate)


def check(study: StudySnapshot) -> str:
    """Compares actual and estimated time in one sentence; empty without an estimate."""
    took = sum(study.spent.values())
    if study.estimate_s is None or not took:
        return ""
    return (
        f"estimated: {format_duration(study.estimate_s)} for all trials run to their end; took: "
        f"{format_duration(took)}"
    )


def token_s(space: SearchSpace, timings: ModelTimings) -> float:
    """Seconds per decoded token of the default config when every miss waits: an upper estimate."""
    try:
        config, plan = space.resolve(space.default())
    except InfeasibleError:
        return 0.0
    return _token_s(config, plan, space.facts, timings)


def _token_s(
    config: EngineConfig, plan: MemoryPlan, facts: ModelFacts, timings: ModelTimings
) -> float:
    bits = config.precision.bits if config.precision.bits in timings.expert_s else _most(timings)
    source, record = timings.sources[bits], facts.record_bytes[str(bits)]
    missing = 1 - plan.resident_fraction(facts.moe_layers * facts.experts)
    fetch = source.chunk_s * source.extents + record / max(source.bytes_per_s.values())
    expert = at(timings.expert_s[bits], 1) + missing * fetch
    layer = sum(at(c, 1) for c in (timings.non_expert_s, timings.router_s, timings.policy_s))
    layer += at(timings.layer_s[bits], 1)
    return at(timings.pass_s, 1) + facts.moe_layers * (layer + facts.experts_per_token * expert)


def _most(timings: ModelTimings) -> int:
    """The bits whose timings stand in for a pre-quantized checkpoint: the most bits timed."""
    return max(timings.expert_s)


def _estimate(
    definition: StudyDefinition,
    space: SearchSpace,
    workload: Workload,
    timings: ModelTimings,
    trials: int,
) -> dict[str, float]:
    """Seconds by stage. A prompt token costs an eighth of a decoded one, since experts are
    shared."""
    token = token_s(space, timings)
    once = workload.sequences * (workload.output_tokens + workload.prompt_tokens / 8) * token
    search = trials * (CONFIGURE_S + (WARM_UPS + definition.repeats.min) * once)
    if "quality" in definition.objectives:
        tasks = definition.quality.tasks
        items = len(tasks) * (definition.quality.limit or ITEMS)
        search += min(trials, _groups(space)) * (TASKS_S + items * ITEM_TOKENS / 8 * token)
    found = {"search": search}
    if definition.sampler == "auto":
        found["trace"] = ROUNDS * once
        found["twin"] = min(TWIN_S, REPLAY_S * space.size)
    if definition.confirm_rounds:
        each = START_S + CONFIRMED * (CONFIGURE_S + (WARM_UPS + 1) * once)
        found["confirm"] = definition.confirm_rounds * each
    return found


def _groups(space: SearchSpace) -> int:
    """The number of configs that differ in quality."""
    return len({quality_group(space.config(point)) for point in space.memory_points()})
