"""Plans a study before it runs: its space, what fits, a rough time.

The time is that of a typical study at the machine's general speeds: it ends when no config promises
more. `check` compares it afterwards with the actual time.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.errors import InfeasibleError
from engine.facts.adjusted_timings import at_precision
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
from tuner.study.trial import FEWEST_IF_SLOW, MOST_MEASURING_S

# Typical seconds beside computing (docs/lab/): starting an engine; lm-eval's own start; replaying
# one config.
START_S, TASKS_S, REPLAY_S = 4.0, 5.0, 0.1
CONFIRMED = 3  # typical number of front members
TYPICAL_TRIALS = 12  # of studies that end when nothing more is promised
TYPICAL_GROUPS = 4  # typical number of precisions whose quality is evaluated
ITEM_TOKENS = 50
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
    device, context_bytes = session.opened_device, session.context_bytes
    space = build_space(definition, facts, workload, device, context_bytes)
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
        timings = profiled_timings(
            profile, space.facts, session.opened_device, together=session.decodes_together
        )
        estimate = _estimate(definition, space, workload, timings, trials)
    return StudyPlan(space.facts.id, space, workload, trials, checked, fitting, estimate)


def check(study: StudySnapshot) -> str:
    """Compares actual and estimated time in one sentence; empty without an estimate."""
    took = sum(study.spent.values())
    if study.estimate_s is None or not took:
        return ""
    return f"estimated: {format_duration(study.estimate_s)}; took: {format_duration(took)}"


@dataclass(frozen=True)
class EstimatedConfig:
    """Seconds of a config by the machine's speeds, when every miss waits: an upper estimate."""

    config: EngineConfig
    plan: MemoryPlan
    facts: ModelFacts
    timings: ModelTimings

    def pass_s(self, tokens: int) -> float:
        """Seconds of one forward pass of so many tokens, which share experts."""
        facts, bits = self.facts, self._bits
        precision = self.config.precision
        timings = at_precision(self.timings, precision.non_expert_bits, precision.activation_bits)
        source, record = timings.sources[bits], facts.record_bytes[str(bits)]
        missing = 1 - self.plan.resident_fraction(facts.moe_layers * facts.experts)
        fetch_s = source.chunk_s * source.extents + record / max(source.bytes_per_s.values())
        experts = min(facts.experts, tokens * facts.experts_per_token)
        each = max(1, round(tokens * facts.experts_per_token / experts))
        layer_s = sum(
            at(curve, tokens)
            for curve in (timings.non_expert_s, timings.router_s, timings.policy_s)
        )
        layer_s += at(timings.layer_s[bits], tokens)
        layer_s += experts * (at(timings.expert_s[bits], each) + missing * fetch_s)
        return at(timings.pass_s, tokens) + facts.moe_layers * layer_s

    def workload_s(self, workload: Workload) -> float:
        """Seconds of all sequences of a workload, one after the other."""
        prompt_s = self.tokens_s(workload.prompt_tokens)
        return workload.sequences * (prompt_s + workload.output_tokens * self.pass_s(1))

    def tokens_s(self, tokens: int) -> float:
        """Seconds of so many tokens of prompts, in the config's chunks."""
        chunk = min(tokens, self.config.prefill.chunk_tokens)
        return tokens / chunk * self.pass_s(chunk)

    @property
    def _bits(self) -> int:
        """Of a pre-quantized checkpoint, the most bits timed stand in for its own."""
        bits = self.config.precision.bits
        return bits if bits in self.timings.expert_s else max(self.timings.expert_s)


def _configs(space: SearchSpace, timings: ModelTimings) -> list[EstimatedConfig]:
    """The default config, then the others that differ from it in precision."""
    found = []
    for point in (space.default(), *space.precision_corners()):
        with contextlib.suppress(InfeasibleError):
            found.append(EstimatedConfig(*space.resolve(point), space.facts, timings))
    return found


def _estimate(
    definition: StudyDefinition,
    space: SearchSpace,
    workload: Workload,
    timings: ModelTimings,
    trials: int,
) -> dict[str, float]:
    """Seconds by stage: of the default config, which runs first, and of typical ones."""
    configs = _configs(space, timings)
    if not configs:
        return {}
    default, typical_s = configs[0], statistics.median(one.workload_s(workload) for one in configs)
    count = likely_trials(definition, trials)
    passes = WARM_UPS + definition.repeats.min
    first_s = _measuring_s(default.workload_s(workload), passes)
    search = count * CONFIGURE_S + first_s + (count - 1) * _measuring_s(typical_s, passes)
    if "quality" in definition.objectives:
        tasks = definition.quality.tasks
        tokens = len(tasks) * (definition.quality.limit or ITEMS) * ITEM_TOKENS
        groups = min(count, TYPICAL_GROUPS, _groups(space))
        evaluating_s = statistics.median(one.tokens_s(tokens) for one in configs)
        search += default.tokens_s(tokens) + groups * (TASKS_S + evaluating_s)
    found = {"search": search}
    if definition.sampler == "auto":
        found["trace"] = ROUNDS * default.workload_s(workload)
        found["twin"] = min(TWIN_S, REPLAY_S * space.size)
    if definition.confirm_rounds:
        each = START_S + CONFIRMED * (CONFIGURE_S + (WARM_UPS + 1) * typical_s)
        found["confirm"] = definition.confirm_rounds * each
    return found


def likely_trials(definition: StudyDefinition, most: int) -> int:
    """The number of trials that a study of at most so many is likely to run."""
    return min(most, TYPICAL_TRIALS) if definition.sampler == "auto" else most


def _measuring_s(once_s: float, passes: float) -> float:
    """Seconds of so many passes, fewer where MOST_MEASURING_S is over."""
    least = WARM_UPS + FEWEST_IF_SLOW
    return max(min(passes * once_s, MOST_MEASURING_S), min(passes, least) * once_s)


def _groups(space: SearchSpace) -> int:
    """The number of configs that differ in quality."""
    return len({quality_group(space.config(point)) for point in space.memory_points()})
