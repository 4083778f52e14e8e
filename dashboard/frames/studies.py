"""Frames of studies, their time by stage, their running trials, and deployments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tuner.store.overview import RunningTrial
from tuner.store.snapshots import StudySnapshot, TelemetrySnapshot
from tuner.study.stages import Activity

# Stages whose time the store keeps, in words.
SPENT = {
    "search": "trials: choosing and running configs",
    "confirm": "measuring the front again",
    "profile": "profiling the machine",
    "trace": "recording which experts are used",
    "twin": "predicting configs by replay",
}
MINUTES = "%Y-%m-%d %H:%M"


def studies_frame(studies: Sequence[StudySnapshot]) -> pd.DataFrame:
    """One row a study, newest first."""
    states = sorted({state for study in studies for state in study.trials_by_state})
    return pd.DataFrame(
        [
            {
                "study": study.name,
                "model": study.model,
                "state": study.state,
                "trials": study.trials,
                **{state.lower(): study.trials_by_state.get(state, 0) for state in states},
                "updated (UTC)": study.updated.strftime(MINUTES),
            }
            for study in reversed(studies)
        ]
    )


def spent_frame(study: StudySnapshot) -> pd.DataFrame:
    """Seconds by stage, the longest first: columns stage, seconds."""
    rows = sorted(study.spent.items(), key=lambda item: -item[1])
    named = [(SPENT.get(stage, stage), seconds) for stage, seconds in rows]
    return pd.DataFrame(named, columns=["stage", "seconds"])


def done_fraction(study: StudySnapshot) -> float | None:
    """How much of a running study's time has passed, by its own estimate; None without one."""
    if study.progress is None:
        return None
    activity = Activity.from_json(study.progress)
    if activity.study_left_s is None:
        return None
    whole_s = activity.elapsed_s + activity.study_left_s
    return activity.elapsed_s / whole_s if whole_s > 0 else None


def progress_line(study: StudySnapshot) -> str:
    """What a running study does now, and how long is left; empty when nothing is known of it."""
    if study.progress is None:
        return ""
    activity = Activity.from_json(study.progress)
    return f"{activity.what} · {activity.left}"


def running_frame(trials: Sequence[RunningTrial]) -> pd.DataFrame:
    """One row a running trial."""
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "since (UTC)": trial.started.strftime("%H:%M:%S"),
                "worker": trial.worker or "",
                **{name: str(value) for name, value in trial.params.items()},
            }
            for trial in trials
        ]
    )


def deployments_frame(windows: Sequence[TelemetrySnapshot]) -> pd.DataFrame:
    """One row a deployment: its newest telemetry window, and whether to tune again."""
    newest = {window.deployment: window for window in windows}
    return pd.DataFrame(
        [
            {
                "deployment": name,
                "tokens": window.payload.get("output_tokens"),
                "ms per token": window.payload.get("tpot_ms"),
                "stall ms per token": window.payload.get("stall_ms_per_token"),
                "hit rate": window.payload.get("expert_hit_rate"),
                "routing drift": _drift(window).get("routing"),
                "state": "re-tune" if _drift(window).get("retune") else "holds",
                "at (UTC)": window.created.strftime(MINUTES),
            }
            for name, window in newest.items()
        ]
    )


def _drift(window: TelemetrySnapshot) -> Mapping[str, Any]:
    found = window.payload.get("drift")
    return found if isinstance(found, dict) else {}
