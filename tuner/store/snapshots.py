"""Frozen values that the store returns; nothing here can reach the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from engine.contract.report import Metric, QualityReport

TrialState = Literal["RUNNING", "COMPLETE", "INFEASIBLE", "PRUNED", "FAILED", "INTERRUPTED"]
StudyState = Literal["RUNNING", "FINISHED", "INTERRUPTED"]
Role = Literal["search", "confirm", "verify"]
FigureSource = Literal["searched", "confirmed"]
MEASURED_STATES: tuple[TrialState, ...] = ("COMPLETE", "PRUNED")
FINISHED_STATES: tuple[TrialState, ...] = ("COMPLETE", "INFEASIBLE", "PRUNED", "FAILED")


@dataclass(frozen=True)
class StudySnapshot:
    """A study. progress: what it does now (tuner.study.stages), None when it does not run."""

    id: int
    name: str
    state: StudyState
    model: str
    model_id: int
    model_fingerprint: str
    machine_id: int
    machine: Mapping[str, Any]
    facts: Mapping[str, Any]
    definition: Mapping[str, Any]
    search_digest: str
    workload: Mapping[str, Any]
    workload_hash: str
    trials: int
    trials_by_state: Mapping[str, int]
    parent_pid: int | None
    created: datetime
    updated: datetime
    spent: Mapping[str, float] = field(default_factory=dict)
    estimate_s: float | None = None
    progress: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys of `tune studies --json`."""
        return {
            "name": self.name,
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "trials": self.trials,
            "trials_by_state": dict(self.trials_by_state),
            "state": self.state,
            "spent_s": dict(self.spent),
            "estimate_s": self.estimate_s,
            "progress": None if self.progress is None else dict(self.progress),
            "created": self.created.isoformat(),
            "updated": self.updated.isoformat(),
        }


@dataclass(frozen=True)
class QualityResult:
    """One row of quality_result."""

    id: int
    key: str
    report: QualityReport


@dataclass(frozen=True)
class TrialSnapshot:
    """A trial with the measurements of its configuration, pooled over all samples.

    metrics are pooled over every repeat of the configuration on the study's machine; confirmed over
    those in fresh processes alone, {} if there are none; `figures` chooses between them, and is
    what every output states; scores hold the objectives' figures; bounds those that a PRUNED trial
    got as an optimistic bound, without an evaluation; violations hold relative excesses over
    limits, feasible at <= 0; predicted: speeds by replay before it ran; engine_s: seconds that the
    engine was busy.
    """

    id: int
    number: int
    state: TrialState
    failure: str | None
    reason: str | None
    params: Mapping[str, Any]
    scores: Mapping[str, float]
    violations: Mapping[str, float]
    memory: Mapping[str, Any]
    configuration_id: int | None
    config: Mapping[str, Any] | None
    metrics: Mapping[str, Metric]
    sentinel: Mapping[str, float] | None
    quality: QualityReport | None
    started: datetime
    finished: datetime | None
    quality_id: int | None = None
    reference_id: int | None = None
    confirmed: Mapping[str, Metric] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    engine_s: float | None = None
    origin: str | None = None
    worker: str | None = None

    @property
    def feasible(self) -> bool:
        """Measured to the end and within every limit."""
        return self.state == "COMPLETE" and all(v <= 0 for v in self.violations.values())

    @property
    def figures(self) -> Mapping[str, Metric]:
        """The figure of each metric: confirmed if it was, else searched."""
        return figures_of(self.metrics, self.confirmed)

    @property
    def source(self) -> FigureSource:
        """Where the figures come from: fresh processes after the search, or the search."""
        return "confirmed" if self.confirmed else "searched"

    def to_json(self) -> dict[str, Any]:
        """The keys of one trial in `tune show --json`."""
        return {
            "number": self.number,
            "state": self.state,
            "failure": self.failure,
            "reason": self.reason,
            "feasible": self.feasible,
            "params": dict(self.params),
            "scores": dict(self.scores),
            "violations": dict(self.violations),
            "source": self.source,
            "metrics": {name: asdict(metric) for name, metric in self.figures.items()},
            "confirmed": {name: asdict(metric) for name, metric in self.confirmed.items()},
            "bounds": dict(self.bounds),
            "predicted": dict(self.predicted),
            "engine_s": self.engine_s,
            "origin": self.origin,
            "worker": self.worker,
            "memory": dict(self.memory),
            "quality": self.quality.to_json(with_items=False) if self.quality else None,
            "config": dict(self.config) if self.config else None,
            "sentinel": dict(self.sentinel) if self.sentinel else None,
            "started": self.started.isoformat(),
            "finished": self.finished.isoformat() if self.finished else None,
        }


def figures_of(
    metrics: Mapping[str, Metric], confirmed: Mapping[str, Metric]
) -> Mapping[str, Metric]:
    """The one figure of each metric of a trial: the confirmed one if there is one, since the best
    of many searched ones overstates."""
    return {**metrics, **confirmed}


@dataclass(frozen=True)
class TelemetrySnapshot:
    """A deployment's telemetry for one time window. deployment: `study/trial` of its config."""

    deployment: str
    payload: Mapping[str, Any]
    created: datetime


# Origins of points, as trials store them; a warm-start point adds its study's name.
DEFAULT, CORNER, RETRY, SEARCH, TRANSFER = "default", "corner", "retry", "search", "transfer: "
