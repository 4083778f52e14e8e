"""Standard errors of measured means: scatter of repeats and of engine starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.contract.report import Metric
from engine.contract.statistics import quantile
from tuner.store.snapshots import TrialSnapshot

# Relative deviation of one repeat until the study has its own estimate; this machine may be shared.
FIRST_DEVIATION = 0.08
LEAST_DEVIATION = 0.02
FEWEST_REPEATS = 6  # pooled over configurations, before their scatter is used


def budget_of(trial: TrialSnapshot) -> int:
    """The device budget that the trial's config was resolved under, in bytes; 0: none."""
    return int((trial.config or {}).get("budget", {}).get("vram_bytes", 0))


def pooled_deviation(trials: Sequence[TrialSnapshot], metric: str) -> float:
    """Relative standard deviation of one repeat, over all configurations with several."""
    squares, degrees, repeats = 0.0, 0, 0
    seen: set[int] = set()
    for trial in trials:
        found = trial.metrics.get(metric)
        if found is None or found.n < 2 or trial.configuration_id in seen or found.low <= 0:
            continue
        seen.add(trial.configuration_id or 0)
        deviation = _deviation(found)
        squares += deviation**2 * (found.n - 1)
        degrees += found.n - 1
        repeats += found.n
    if repeats < FEWEST_REPEATS:
        return FIRST_DEVIATION
    return max(LEAST_DEVIATION, math.sqrt(squares / degrees))


def mean_error_of(trial: TrialSnapshot, metric: str, deviation: float) -> float:
    """Relative standard error of a trial's figure. Each confirming repeat had a start of its own,
    those of the search shared one.

    deviation: of repeats within one start, relative.
    """
    count = trial.figures[metric].n
    return mean_error(deviation, count, count if metric in trial.confirmed else 0)


def _deviation(metric: Metric) -> float:
    """The relative standard deviation of one repeat behind a mean's 95 % interval."""
    half = math.log(metric.high / metric.low) / 2
    return half * math.sqrt(metric.n) / quantile(metric.n - 1)


# Relative deviation between two engine starts with one config, in addition to the scatter of
# repeats within one: measured on 252 configs, each started twice (docs/lab/).
START_DEVIATION = 0.06


def mean_error(deviation: float, count: int, fresh: int = 0) -> float:
    """Relative standard error of a mean of `count` repeats, of which `fresh` had a start of their
    own and the others shared one. deviation: of repeats within one start, relative."""
    shared = count - fresh
    starts = math.sqrt(shared**2 + fresh) / count
    return math.hypot(deviation / math.sqrt(count), START_DEVIATION * starts)
