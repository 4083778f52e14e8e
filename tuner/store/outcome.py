"""TrialOutcome: the end of a trial, as it is written to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.store.snapshots import TrialState


@dataclass(frozen=True)
class TrialOutcome:
    """The end of a trial: what finish_trial writes."""

    state: TrialState
    failure: str | None = None
    reason: str | None = None
    scores: Mapping[str, float] | None = None
    violations: Mapping[str, float] | None = None
    memory: Mapping[str, Any] | None = None
    configuration_id: int | None = None
    quality_id: int | None = None
    reference_id: int | None = None
    bounds: Mapping[str, float] | None = None
    predicted: Mapping[str, float] | None = None
    engine_s: float | None = None
