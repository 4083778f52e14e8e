"""Trials that ended early and are beaten no more.

A short replicate is ended because the front, as it stood, beat the best that it could reach. Later
repeats may lower what beat it; before a front is called final, such a trial deserves its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tuner.store.snapshots import TrialSnapshot
from tuner.study.pruning import (
    Rivals,
    budget_of,
)

Samples = Mapping[str, Sequence[float]]


def unbeaten(
    trials: Sequence[TrialSnapshot], rivals: Rivals, samples_of: Callable[[int], Samples]
) -> list[TrialSnapshot]:
    """DOMINATED trials that no rival beats now, one a configuration: none beyond a limit, and none
    of a configuration that another trial ran to its end or found not to fit.

    samples_of: repeats of each speed of a configuration, by its id.
    """
    ended = {t.configuration_id for t in trials if t.state in ("COMPLETE", "INFEASIBLE")}
    found: dict[int, TrialSnapshot] = {}
    for trial in trials:
        configuration = trial.configuration_id
        if trial.state != "DOMINATED" or configuration is None or configuration in ended:
            continue
        if any(excess > 0 for excess in trial.violations.values()):
            continue
        quality = trial.scores.get("quality")  # known, or as much as was granted
        rival, _ = rivals.beating(samples_of(configuration), quality, budget_of(trial))
        if rival is None:
            found.setdefault(configuration, trial)
    return list(found.values())
