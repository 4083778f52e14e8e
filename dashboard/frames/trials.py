"""Frames of trials: the table, failures, settings against objectives, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from tuner.formatting import format_metric
from tuner.store.snapshots import TrialSnapshot

PREDICTED, MEASURED = "predicted", "measured"


def trials_frame(trials: Sequence[TrialSnapshot], objectives: Sequence[str]) -> pd.DataFrame:
    """One row a trial, newest first."""
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "state": _state(trial),
                "failure": trial.failure or "",
                **{name: _figure(trial, name) for name in objectives},
                **{name: str(value) for name, value in trial.params.items()},
                "reason": trial.reason or "",
                "engine s": trial.engine_s,
                "origin": trial.origin or "",
            }
            for trial in sorted(trials, key=lambda trial: -trial.number)
        ]
    )


def failures_frame(failures: Mapping[str, int]) -> pd.DataFrame:
    """The number of trials by failure class: columns failure, trials."""
    return pd.DataFrame(sorted(failures.items()), columns=["failure", "trials"])


def parallel_frame(trials: Sequence[TrialSnapshot], objectives: Sequence[str]) -> pd.DataFrame:
    """One row a completed trial: its proposed settings, then its objectives."""
    return pd.DataFrame(
        [
            {**trial.params, **{name: trial.scores[name] for name in objectives}}
            for trial in trials
            if trial.state == "COMPLETE" and set(objectives) <= set(trial.scores)
        ]
    )


def importances_frame(weights: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Columns setting, objective, fraction; sorted by importance over all objectives."""
    rows = [
        (setting, objective, fraction)
        for objective, fractions in weights.items()
        for setting, fraction in fractions.items()
    ]
    frame = pd.DataFrame(rows, columns=["setting", "objective", "fraction"])
    total = frame.groupby("setting")["fraction"].transform("sum")
    order = frame.assign(total=total).sort_values(["total", "setting"], ascending=False)
    return order.drop(columns="total").reset_index(drop=True)


def predicted_frame(trials: Sequence[TrialSnapshot], metric: str) -> pd.DataFrame:
    """Columns number, predicted and measured with its interval, for trials that have both."""
    rows = [
        (trial.number, trial.predicted[metric], found.value, found.low, found.high)
        for trial in trials
        if metric in trial.predicted and (found := trial.metrics.get(metric)) is not None
    ]
    columns = ["number", PREDICTED, MEASURED, f"{MEASURED}_low", f"{MEASURED}_high"]
    return pd.DataFrame(rows, columns=columns)


def _state(trial: TrialSnapshot) -> str:
    outside = trial.state == "COMPLETE" and not trial.feasible
    return "OUTSIDE LIMITS" if outside else trial.state


def _figure(trial: TrialSnapshot, name: str) -> str:
    """Formats a metric with its interval; a bound is marked as one."""
    if name in trial.bounds:
        return f"at most {trial.bounds[name]:.4g}"
    if name in trial.metrics:
        return format_metric(trial.metrics[name])
    return f"{trial.scores[name]:.4g}" if name in trial.scores else "-"
