"""The planner for those who hold no policies: how many micro-batches hide transfers."""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.contract.messages import ModelFacts
from engine.facts.timings import ModelTimings
from engine.policy.batch_plan import (
    IoComputePlan,
    Planned,
)


def plan_micro_batches(config: EngineConfig, facts: ModelFacts, timings: ModelTimings) -> Planned:
    """Klotski's inequalities on measured timings: see engine.policy.batch_plan.IoComputePlan."""
    return IoComputePlan().plan(config, facts, timings)
