"""From the store's snapshots to data frames, one a chart or table; no Streamlit, no Plotly."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tuner.curve import CurvePoint, fastest_tps
from tuner.front import Front
from tuner.store.snapshots import StudySnapshot, TelemetrySnapshot, TrialSnapshot

SPLIT_PREFIX = "time_ms_per_token."
FRONT, KNEE, INSIDE, OUTSIDE = "front", "recommended", "dominated", "outside the limits"


def studies_frame(studies: Sequence[StudySnapshot]) -> pd.DataFrame:
    """One row a study."""
    return pd.DataFrame(
        [
            {
                "study": study.name,
                "model": study.model,
                "state": study.state,
                "trials": study.trials,
                **{state.lower(): n for state, n in sorted(study.trials_by_state.items())},
                "updated (UTC)": study.updated.strftime("%Y-%m-%d %H:%M"),
            }
            for study in studies
        ]
    )


def curve_frame(points: Sequence[CurvePoint]) -> pd.DataFrame:
    """One row a budget of a budget curve; empty for a single budget."""
    if len(points) < 2:
        return pd.DataFrame()
    return pd.DataFrame(
        [
            {
                "budget (GB)": point.budget_bytes / 1e9,
                "recommended trial": point.front.knee.number if point.front.members else None,
                "fastest tokens/s": fastest_tps(point.front),
                "more tokens/s for each GB": point.gained_tps,
            }
            for point in points
        ]
    )


def deployments_frame(windows: Sequence[TelemetrySnapshot]) -> pd.DataFrame:
    """The newest window of each deployment, and whether to tune again."""
    newest = {window.deployment: window for window in windows}
    return pd.DataFrame(
        [
            {
                "deployment": name,
                "tokens": window.payload.get("output_tokens"),
                "ms per token": window.payload.get("tpot_ms"),
                "stall ms per token": window.payload.get("stall_ms_per_token"),
                "hit rate": window.payload.get("expert_hit_rate"),
                "routing drift": window.payload.get("drift", {}).get("routing"),
                "state": "re-tune" if window.payload.get("drift", {}).get("retune") else "holds",
                "at (UTC)": window.created.strftime("%Y-%m-%d %H:%M"),
            }
            for name, window in newest.items()
        ]
    )


def points_frame(front: Front) -> pd.DataFrame:
    """One row a measured trial: number, kind, objectives with low and high, settings as text."""
    on_front = {trial.id for trial in front.members}
    knee = front.knee.id if front.members else None
    rows = []
    for trial in front.trials:
        if trial.state != "COMPLETE" or not set(front.objectives) <= set(trial.scores):
            continue
        row: dict[str, object] = {
            "number": trial.number,
            "kind": _kind(trial, on_front, knee),
            "settings": "<br>".join(f"{name} = {value}" for name, value in trial.params.items()),
        }
        for name in front.objectives:
            value = trial.scores[name]
            metric = trial.metrics.get(name)
            row[name] = value
            row[f"{name}_low"] = metric.low if metric else value
            row[f"{name}_high"] = metric.high if metric else value
        rows.append(row)
    return pd.DataFrame(rows)


def trials_frame(trials: Sequence[TrialSnapshot]) -> pd.DataFrame:
    """One row a trial, for the table."""
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "state": trial.state,
                "failure": trial.failure or "",
                **{name: trial.scores.get(name) for name in _score_names(trials)},
                **{name: str(value) for name, value in trial.params.items()},
                "reason": trial.reason or "",
            }
            for trial in trials
        ]
    )


def failures_frame(trials: Sequence[TrialSnapshot]) -> pd.DataFrame:
    """How many trials ended in each class of failure: columns failure, trials."""
    counts: dict[str, int] = {}
    for trial in trials:
        if trial.failure:
            counts[trial.failure] = counts.get(trial.failure, 0) + 1
    return pd.DataFrame(sorted(counts.items()), columns=["failure", "trials"])


def metrics_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """One row a metric of a trial, with its interval."""
    return pd.DataFrame(
        [
            {
                "metric": name,
                "value": metric.value,
                "low": metric.low,
                "high": metric.high,
                "n": metric.n,
                "unit": metric.unit,
            }
            for name, metric in trial.metrics.items()
        ]
    )


def split_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """Where the time of a token goes: columns part, ms."""
    rows = [
        (name.removeprefix(SPLIT_PREFIX), metric.value)
        for name, metric in trial.metrics.items()
        if name.startswith(SPLIT_PREFIX)
    ]
    return pd.DataFrame(rows, columns=["part", "ms"])


def _kind(trial: TrialSnapshot, on_front: set[int], knee: int | None) -> str:
    if trial.id == knee:
        return KNEE
    if trial.id in on_front:
        return FRONT
    return INSIDE if trial.feasible else OUTSIDE


def _score_names(trials: Sequence[TrialSnapshot]) -> list[str]:
    return sorted({name for trial in trials for name in trial.scores})
