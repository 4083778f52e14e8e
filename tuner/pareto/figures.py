"""A trial's figure of one objective as text, the same in terminal and dashboard."""

from __future__ import annotations

from tuner.formatting import format_metric
from tuner.store.snapshots import TrialSnapshot


def format_figure(trial: TrialSnapshot, name: str) -> str:
    """Formats a figure with its interval; a bound is marked as one, and what was not measured is a
    dash."""
    if name in trial.bounds:
        return f"at most {trial.bounds[name]:.4g}"
    if name in trial.figures:
        return format_metric(trial.figures[name])
    return f"{trial.scores[name]:.4g}" if name in trial.scores else "-"
