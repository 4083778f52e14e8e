"""What a study will do, before it does it: space, what fits, a rough time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.errors import InfeasibleError
from engine.hardware import probe
from engine.memory import record_bytes
from engine.protocol import MachineProfile, ModelFacts, Workload
from tuner.definition import StudyDefinition
from tuner.errors import WorkerError
from tuner.folders import cache_folder
from tuner.machine import machine_profile
from tuner.session import EngineSession
from tuner.space import SearchSpace, build_space

# Beside computing: configuring, warming up, the sentinel. Seconds a trial, rough.
TRIAL_OVERHEAD_S = 4.0


@dataclass(frozen=True)
class StudyPlan:
    """checked: memory layouts looked at; fitting: how many of them fit; estimate_s: rough."""

    model: str
    space: SearchSpace
    trials: int
    checked: int
    fitting: int
    estimate_s: float | None

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
                "trials": self.trials,
                "estimate_s": self.estimate_s,
            }
        }


def plan_study(definition: StudyDefinition, session: EngineSession) -> StudyPlan:
    """Look at the space without running a trial.

    Raises InfeasibleStudyError with the smallest budget when nothing fits.
    """
    workload = definition.load_workload()
    space = build_space(definition, session.describe(), workload)
    checked = fitting = 0
    for point in space.memory_points():
        checked += 1
        fitting += space.fits(point)
    trials = min(definition.trials, space.size)
    try:
        profile = machine_profile(session, probe(cache_folder()))
    except WorkerError:
        estimate_s = None
    else:
        estimate_s = trials * _trial_s(space, workload, profile, definition.repeats.min)
    return StudyPlan(space.facts.id, space, trials, checked, fitting, estimate_s)


def token_s(space: SearchSpace, profile: MachineProfile) -> float:
    """Seconds a token of the default config when every miss waits for the disk: an upper guess."""
    facts = space.facts
    try:
        config, plan = space.resolve(space.default())
    except InfeasibleError:
        return 0.0
    record = record_bytes(config, facts)
    needed = facts.moe_layers * facts.experts_per_token * record
    missing = 1 - plan.resident_share(facts.moe_layers * facts.experts)
    read = _read_speed(profile, record, facts)
    return needed * missing / read + (needed + plan.dense_bytes) / profile.memory_bytes_per_s


def _trial_s(
    space: SearchSpace, workload: Workload, profile: MachineProfile, repeats: int
) -> float:
    tokens = workload.sequences * (workload.output_tokens + workload.prompt_tokens / 8)
    return TRIAL_OVERHEAD_S + (repeats + 1) * tokens * token_s(space, profile)


def _read_speed(profile: MachineProfile, record: int, facts: ModelFacts) -> float:
    """The measured speed at the record size nearest to this one."""
    if not profile.read_bytes_per_s:
        return 1e9
    nearest = min(profile.read_bytes_per_s, key=lambda size: abs(int(size) - record))
    return profile.read_bytes_per_s[nearest]
