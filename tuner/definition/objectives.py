"""From measured metrics to objective values and constraints. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.contract.report import Metric
from tuner.definition.study import Constraints

# The order in which every constraint is told to every sampler (GPSampler matches by position).
CONSTRAINTS = ("memory", "quality", "ttft", "tpot")
DIRECTIONS = {"output_tps": "maximize", "tpot_ms": "minimize", "quality": "maximize"}
WORST = {"output_tps": 0.0, "tpot_ms": 1e9, "quality": 0.0}


def scores(
    metrics: Mapping[str, Metric], quality: float | None, objectives: Sequence[str]
) -> dict[str, float]:
    """One number an objective, in the objectives' order."""
    values = {name: metrics[name].value for name in objectives if name in metrics}
    if quality is not None and "quality" in objectives:
        values["quality"] = quality
    return {name: values[name] for name in objectives}


def violations(
    metrics: Mapping[str, Metric], quality: float | None, limits: Constraints
) -> dict[str, float]:
    """Relative excess over each limit, feasible at <= 0; 0 where no limit was given."""
    found = dict.fromkeys(CONSTRAINTS, 0.0)
    if limits.min_quality is not None and quality is not None:
        found["quality"] = (limits.min_quality - quality) / limits.min_quality
    for name, metric, limit in (
        ("ttft", "ttft_ms", limits.max_ttft_ms),
        ("tpot", "tpot_ms", limits.max_tpot_ms),
    ):
        if limit is not None and metric in metrics:
            found[name] = (metrics[metric].value - limit) / limit
    return found


def memory_violation(needed_bytes: int | None, budget_bytes: int) -> dict[str, float]:
    """All constraints of a configuration that does not fit, by how much it does not."""
    excess = (needed_bytes or 0) / budget_bytes - 1 if budget_bytes else 1.0
    return {**dict.fromkeys(CONSTRAINTS, 0.0), "memory": max(excess, 0.01)}


SIGNS = {"output_tps": 1, "tpot_ms": -1, "quality": 1}
