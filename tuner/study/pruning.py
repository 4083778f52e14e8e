"""Stopping what cannot win: a short replicate's optimistic box against the front.

The box of a configuration is what it could reach at best: each speed's mean and two standard
errors, another start of the engine included, and the quality that is known of it or at most to be
hoped for. A box that a member of the front beats in everything is not worth another second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuner.pareto import dominance
from tuner.statistics import mean_error, quantile
from tuner.store.snapshots import TrialSnapshot

SIGMAS = 2.0
# Of one repeat, relative, while the study knows no better; this machine may be shared.
FIRST_DEVIATION = 0.08
LEAST_DEVIATION = 0.02
FEWEST_REPEATS = 6  # pooled over configurations, before they say how much a repeat scatters


@dataclass(frozen=True)
class Rivals:
    """The front as it stands. members: trial number and objective values of each; deviation: of
    one repeat, relative, over all that was measured; configurations: of the members, whose further
    repeats nothing stops; budgets: device budget of each member, which beats nothing that runs
    under a smaller one."""

    objectives: tuple[str, ...]
    members: tuple[tuple[int, tuple[float, ...]], ...]
    deviation: float
    budgets: Mapping[int, int] = field(default_factory=dict)
    configurations: frozenset[int] = frozenset()

    def beating(
        self,
        values: Mapping[str, Sequence[float]],
        quality: float | None,
        budget_bytes: int = 0,
    ) -> tuple[int | None, dict[str, float]]:
        """The trial that beats this box, None where none does; and the box.

        values: repeats of each speed; quality: known, or the most to be hoped for.
        """
        box: dict[str, float] = {}
        for name in self.objectives:
            if name == "quality":
                box[name] = 1.0 if quality is None else quality
                continue
            sample = values[name]
            mean = statistics.fmean(sample)
            slack = SIGMAS * mean_error(self.deviation, len(sample))
            box[name] = mean * (1 + dominance.SIGNS[name] * slack)
        signs = [dominance.SIGNS[name] for name in self.objectives]
        own = tuple(box[name] for name in self.objectives)
        for number, member in self.members:
            if budget_bytes and self.budgets.get(number, 0) > budget_bytes:
                continue
            if dominance.dominates(member, own, signs):
                return number, box
        return None, box


def rivals_of(
    objectives: Sequence[str],
    members: Sequence[TrialSnapshot],
    trials: Sequence[TrialSnapshot],
    speeds: Sequence[str] = ("output_tps", "tpot_ms"),
) -> Rivals:
    """From a front and all trials of a study."""
    points = tuple(
        (trial.number, tuple(trial.scores[name] for name in objectives)) for trial in members
    )
    return Rivals(
        tuple(objectives),
        points,
        max(pooled_deviation(trials, name) for name in speeds),
        {trial.number: budget_of(trial) for trial in members},
        frozenset(trial.configuration_id or 0 for trial in members),
    )


def budget_of(trial: TrialSnapshot) -> int:
    """The device budget that its config was resolved under, in bytes; 0: none."""
    return int((trial.config or {}).get("budget", {}).get("vram_bytes", 0))


def pooled_deviation(trials: Sequence[TrialSnapshot], metric: str) -> float:
    """Relative standard deviation of one repeat, over all configurations with several."""
    squares, degrees, repeats = 0.0, 0, 0
    seen: set[int] = set()
    for trial in trials:
        found = trial.metrics.get(metric)
        if found is None or found.n < 2 or trial.configuration_id in seen or not found.value:
            continue
        seen.add(trial.configuration_id or 0)
        deviation = _deviation(found.high - found.low, found.n) / abs(found.value)
        squares += deviation**2 * (found.n - 1)
        degrees += found.n - 1
        repeats += found.n
    if repeats < FEWEST_REPEATS:
        return FIRST_DEVIATION
    return max(LEAST_DEVIATION, math.sqrt(squares / degrees))


def mean_error_of(trial: TrialSnapshot, metric: str, deviation: float) -> float:
    """Relative standard error of what is known of a trial's configuration. deviation: of repeats
    within one start, relative."""
    confirmed = trial.confirmed.get(metric)
    return mean_error(deviation, trial.metrics[metric].n, confirmed.n if confirmed else 0)


def _deviation(width: float, count: int) -> float:
    """The standard deviation behind a 95 % interval of a mean of so many."""
    return width / 2 * math.sqrt(count) / quantile(count - 1)
