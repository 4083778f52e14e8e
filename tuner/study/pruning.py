"""Prunes configs by comparing a short replicate's optimistic bound with the front.

The bound of a configuration is the best that it could reach: each speed's mean plus two standard
errors, including the scatter between engine starts, and its quality if it is known, else an
optimistic prior. A configuration whose bound an incumbent dominates is pruned.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tuner.definition.objectives import SIGNS
from tuner.pareto import dominance
from tuner.pareto.noise import budget_of, mean_error, pooled_deviation
from tuner.store.snapshots import TrialSnapshot

SIGMAS = 2.0
Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Incumbents:
    """The current front.

    members: trial number and objective values of each; deviation: of one repeat, relative, over all
    measurements; configurations: of the members, which are never pruned; budgets: device budget of
    each member, which cannot dominate a trial under a smaller budget.
    """

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
        """Returns the trial that dominates the bound of these values, None if there is none, and
        the bound.

        values: repeats of each speed; quality: known, or None for the optimistic prior.
        """
        bound: dict[str, float] = {}
        for name in self.objectives:
            if name == "quality":
                bound[name] = 1.0 if quality is None else quality
                continue
            sample = values[name]
            mean = statistics.fmean(sample)
            slack = SIGMAS * mean_error(self.deviation, len(sample))
            bound[name] = mean * (1 + SIGNS[name] * slack)
        signs = [SIGNS[name] for name in self.objectives]
        own = tuple(bound[name] for name in self.objectives)
        for number, member in self.members:
            if budget_bytes and self.budgets.get(number, 0) > budget_bytes:
                continue
            if dominance.dominates(member, own, signs):
                return number, bound
        return None, bound


def incumbents_of(
    objectives: Sequence[str],
    members: Sequence[TrialSnapshot],
    trials: Sequence[TrialSnapshot],
    speeds: Sequence[str] = ("output_tps", "tpot_ms"),
) -> Incumbents:
    """Builds the incumbents from a front's members and all trials of a study."""
    points = tuple(
        (trial.number, tuple(trial.scores[name] for name in objectives)) for trial in members
    )
    return Incumbents(
        tuple(objectives),
        points,
        max(pooled_deviation(trials, name) for name in speeds),
        {trial.number: budget_of(trial) for trial in members},
        frozenset(trial.configuration_id or 0 for trial in members),
    )


def competitive(
    trials: Sequence[TrialSnapshot], incumbents: Incumbents, samples_of: Callable[[int], Samples]
) -> list[TrialSnapshot]:
    """PRUNED trials that no incumbent dominates now, one per configuration, except those beyond a
    limit and those of a configuration that another trial completed or found not to fit.

    samples_of: repeats of each speed of a configuration, by its id.
    """
    ended = {t.configuration_id for t in trials if t.state in ("COMPLETE", "INFEASIBLE")}
    found: dict[int, TrialSnapshot] = {}
    for trial in trials:
        configuration = trial.configuration_id
        if trial.state != "PRUNED" or configuration is None or configuration in ended:
            continue
        if any(excess > 0 for excess in trial.violations.values()):
            continue
        quality = trial.scores.get("quality")  # evaluated, or the optimistic prior
        incumbent, _ = incumbents.beating(samples_of(configuration), quality, budget_of(trial))
        if incumbent is None:
            found.setdefault(configuration, trial)
    return list(found.values())
