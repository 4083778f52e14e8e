"""One table of what a study can optimize or limit, and the arithmetic from metrics to objective
values and constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.contract.report import Metric
from engine.errors import nearest_hint

if TYPE_CHECKING:
    from tuner.definition.study import Constraints


@dataclass(frozen=True)
class Objective:
    """One figure of a configuration.

    worst: the value that samplers receive for a configuration that cannot run; constraint: the name
    under which samplers receive its limit; limit: the field of Constraints, None if it has none;
    goal: the name of its extreme for users (`--pick`), None if it is only limited, not optimized;
    meaning: for charts and tables.
    """

    name: str
    unit: str
    direction: Literal["maximize", "minimize"]
    worst: float
    meaning: str
    goal: str | None = None
    constraint: str | None = None
    limit: str | None = None

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less is."""
        return 1 if self.direction == "maximize" else -1

    @property
    def is_speed(self) -> bool:
        """Whether every measurement gives it, with scatter between repeats."""
        return self.name != "quality"

    def excess(self, value: float, limits: Constraints) -> float:
        """Relative excess over its limit, feasible at <= 0; 0 if no limit was given."""
        limit = getattr(limits, self.limit) if self.limit else None
        return 0.0 if limit is None else -self.sign * (value - limit) / limit


TABLE: Mapping[str, Objective] = {
    one.name: one
    for one in (
        Objective(
            "output_tps", "tok/s", "maximize", 0.0, "output tokens per second", "throughput"
        ),
        Objective(
            "tpot_ms", "ms", "minimize", 1e9, "time per output token", "latency",
            "tpot", "max_tpot_ms",
        ),
        Objective(
            "quality", "ratio", "maximize", 0.0, "quality against 16 bits", "quality",
            "quality", "min_quality",
        ),
        Objective(
            "ttft_ms", "ms", "minimize", 1e9, "time to first token", None, "ttft", "max_ttft_ms"
        ),
    )
}  # fmt: skip
OBJECTIVES = {name: one for name, one in TABLE.items() if one.goal}
GOALS = {one.goal: name for name, one in OBJECTIVES.items() if one.goal}
SPEEDS = tuple(name for name, one in TABLE.items() if one.is_speed)
LIMITED = {one.constraint: one for one in TABLE.values() if one.constraint}
SIGNS = {name: one.sign for name, one in TABLE.items()}
# Further words for them; a study is stored with the metrics' names.
WORDS = {
    **GOALS,
    **dict.fromkeys(("tps", "tokens/s", "tok/s", "tokens_per_second"), "output_tps"),
    "tpot": "tpot_ms",
}
# The order in which every sampler receives the constraints (GPSampler matches by position).
CONSTRAINTS = ("memory", "quality", "ttft", "tpot")


def objective_names(words: Sequence[str]) -> list[str]:
    """The names of the objectives that these words mean, such as throughput for output_tps.

    Raises ValueError with one sentence for an unknown word and for an objective named twice.
    """
    names = []
    for word in words:
        plain = str(word).strip().lower().replace("-", "_")
        name = WORDS.get(plain, plain)
        if name not in OBJECTIVES:
            hint = nearest_hint(plain, (*OBJECTIVES, *WORDS))
            raise ValueError(
                f"there is no objective '{word}'{hint} (allowed: {', '.join(OBJECTIVES)}, or in "
                f"words {', '.join(GOALS)})"
            )
        names.append(name)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"name one or more of {', '.join(OBJECTIVES)}, each once")
    return names


def scores(
    metrics: Mapping[str, Metric], quality: float | None, objectives: Sequence[str]
) -> dict[str, float]:
    """One number per objective, in the objectives' order."""
    values = {name: metrics[name].value for name in objectives if name in metrics}
    if quality is not None and "quality" in objectives:
        values["quality"] = quality
    return {name: values[name] for name in objectives}


def violations(
    metrics: Mapping[str, Metric], quality: float | None, limits: Constraints
) -> dict[str, float]:
    """Relative excess over each limit, feasible at <= 0; 0 if no limit was given."""
    values = {name: metric.value for name, metric in metrics.items()}
    if quality is not None:
        values["quality"] = quality
    found = {
        name: one.excess(values[one.name], limits)
        for name, one in LIMITED.items()
        if one.name in values
    }
    return {**dict.fromkeys(CONSTRAINTS, 0.0), **found}


def memory_violation(needed_bytes: int | None, budget_bytes: int) -> dict[str, float]:
    """All constraints of a configuration that does not fit, with its relative memory excess."""
    excess = (needed_bytes or 0) / budget_bytes - 1 if budget_bytes else 1.0
    return {**dict.fromkeys(CONSTRAINTS, 0.0), "memory": max(excess, 0.01)}
