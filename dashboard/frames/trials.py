"""Frames of trials: the table, failures, settings against objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from tuner.pareto.figures import format_figure
from tuner.store.snapshots import TrialSnapshot


def trials_frame(trials: Sequence[TrialSnapshot], objectives: Sequence[str]) -> pd.DataFrame:
    """One row a trial, newest first."""
    return pd.DataFrame(
        [
            {
                "trial": trial.number,
                "state": _state(trial),
                "failure": trial.failure or "",
                **{name: format_figure(trial, name) for name in objectives},
                "figures": trial.source if trial.scores else "-",
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


def _state(trial: TrialSnapshot) -> str:
    outside = trial.state == "COMPLETE" and not trial.feasible
    return "OUTSIDE LIMITS" if outside else trial.state
