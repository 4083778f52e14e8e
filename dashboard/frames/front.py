"""Frames of the front: its points and members, and one trial's metrics, time split and origin."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dashboard.units import figure, interval
from tuner.formatting import has_interval
from tuner.pareto.figures import format_figure
from tuner.pareto.front import Front
from tuner.pareto.probability import near_front
from tuner.store.snapshots import TrialSnapshot

SPLIT_PREFIX = "time_ms_per_token."
FRONT, KNEE, INSIDE, OUTSIDE = "front", "recommended", "dominated", "outside the limits"
NEAR = "within noise of the front"


def points_frame(front: Front, probability: Mapping[int, float]) -> pd.DataFrame:
    """One row a measured trial: number, kind, probability of being on the front, objectives with
    low and high, settings as text."""
    near = {number for number, _ in near_front(front, dict(probability))}
    on_front = {trial.id for trial in front.members}
    knee = front.knee.id if front.members else None
    rows = []
    for trial in front.trials:
        if trial.state != "COMPLETE" or not set(front.objectives) <= set(trial.scores):
            continue
        row: dict[str, object] = {
            "number": trial.number,
            "kind": _kind(trial, on_front, near, knee),
            "figures": trial.source,
            "probability": probability.get(trial.number, 0.0),
            "settings": "<br>".join(f"{name} = {value}" for name, value in trial.params.items()),
        }
        for name in front.objectives:
            value = trial.scores[name]
            metric = trial.figures.get(name)
            stated = metric if metric and has_interval(metric.n) else None
            row[name] = value
            row[f"{name}_low"] = stated.low if stated else value
            row[f"{name}_high"] = stated.high if stated else value
        rows.append(row)
    return pd.DataFrame(rows)


def members_frame(front: Front, probability: Mapping[int, float]) -> pd.DataFrame:
    """The front's members as a table with the same figures as the chart."""
    knee = front.knee.id if front.members else None
    return pd.DataFrame(
        [
            {
                "trial": member.number,
                "": "★ recommended" if member.id == knee else "",
                **{name: format_figure(member, name) for name in front.objectives},
                "figures": member.source,
                "on the front with": f"{probability.get(member.number, 0.0):.0%}",
                **{name: str(value) for name, value in member.params.items()},
            }
            for member in front.members
        ]
    )


def metrics_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """One row a metric of a trial, with its interval."""
    return pd.DataFrame(
        [
            {
                "metric": name,
                "value": metric.value,
                "low": metric.low if has_interval(metric.n) else None,
                "high": metric.high if has_interval(metric.n) else None,
                "n": metric.n,
                "unit": metric.unit,
                "figures": "confirmed" if name in trial.confirmed else "searched",
            }
            for name, metric in trial.figures.items()
        ]
    )


def shown_metrics_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """`metrics_frame` as text with units, which is read from its left and loses no digit there."""
    return pd.DataFrame(
        [
            {
                "metric": name,
                "value": figure(metric.value, metric.unit),
                "95 % interval": interval(metric),
                "repeats": str(metric.n),
                "figures": "confirmed" if name in trial.confirmed else "searched",
            }
            for name, metric in trial.figures.items()
        ]
    )


def split_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """The time per token by part: columns part, ms."""
    rows = [
        (name.removeprefix(SPLIT_PREFIX), metric.value)
        for name, metric in trial.figures.items()
        if name.startswith(SPLIT_PREFIX)
    ]
    return pd.DataFrame(rows, columns=["part", "ms"])


def origin_frame(trial: TrialSnapshot) -> pd.DataFrame:
    """Where a trial's figures come from: columns "what" and "is"."""
    sentinel = trial.sentinel or {}
    repeats = max((metric.n for metric in trial.metrics.values()), default=0)
    fresh = max((metric.n for metric in trial.confirmed.values()), default=0)
    rows = {
        "proposed by": trial.origin or "the sampler",
        "run by": trial.worker,
        "started (UTC)": trial.started.strftime("%Y-%m-%d %H:%M:%S"),
        "ended (UTC)": trial.finished and trial.finished.strftime("%Y-%m-%d %H:%M:%S"),
        "engine seconds": trial.engine_s and f"{trial.engine_s:.1f}",
        "repeats": f"{repeats}, of them {fresh} in fresh processes",
        "sentinel kernel, ms": f"{sentinel['compute_ms']:.4g}" if sentinel else None,
        "sentinel read, ms": f"{sentinel['read_ms']:.4g}" if sentinel else None,
    }
    found = [(name, str(value)) for name, value in rows.items() if value is not None]
    return pd.DataFrame(found, columns=["what", "is"])


def _kind(trial: TrialSnapshot, on_front: set[int], near: set[int], knee: int | None) -> str:
    if trial.id == knee:
        return KNEE
    if trial.id in on_front:
        return FRONT
    if not trial.feasible:
        return OUTSIDE
    return NEAR if trial.number in near else INSIDE
