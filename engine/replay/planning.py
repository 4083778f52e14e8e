"""The planner for those who hold no policies: how many micro-batches hide transfers."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.policy.plan import IoComputePlan, Planned
from engine.protocol import ModelFacts
from engine.timings import ModelTimings


def plan_micro_batches(config: EngineConfig, facts: ModelFacts, timings: ModelTimings) -> Planned:
    """Klotski's inequalities on measured timings: see engine.policy.plan.IoComputePlan."""
    return IoComputePlan().plan(config, facts, timings)
