"""Importance of each setting for each objective: PED-ANOVA over finished trials.

Optuna's evaluator (Watanabe et al., PED-ANOVA, 2023) measures which settings decide whether a trial
is among the better ones; with few trials it is a hint, not a proof.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna

from tuner.definition.objectives import OBJECTIVES
from tuner.store.snapshots import MEASURED_STATES, TrialSnapshot

FEWEST_TRIALS = 4


def importances(
    trials: Sequence[TrialSnapshot], objectives: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Importances by objective and setting: fractions that sum to 1, or all 0 for an objective with
    fewer than FEWEST_TRIALS values; empty when fewer trials were measured.

    Pruned trials count, as the worse half of most studies, but not for an objective whose value was
    only an optimistic bound.
    """
    measured = [
        trial
        for trial in trials
        if trial.state in MEASURED_STATES and set(objectives) <= set(trial.scores)
    ]
    if len(measured) < FEWEST_TRIALS:
        return {}
    names = list(measured[0].params)
    return {
        objective: _fractions([t for t in measured if objective not in t.bounds], objective, names)
        for objective in objectives
    }


def _fractions(
    trials: Sequence[TrialSnapshot], objective: str, names: Sequence[str]
) -> dict[str, float]:
    varied = {name for name in names if len(_choices(trials, name)) > 1}
    few = len(trials) < FEWEST_TRIALS
    if few or not varied or len({trial.scores[objective] for trial in trials}) < 2:
        return dict.fromkeys(names, 0.0)
    distributions = {
        name: optuna.distributions.CategoricalDistribution(_choices(trials, name))
        for name in varied
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and few trials
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction=OBJECTIVES[objective].direction)
        for trial in trials:
            study.add_trial(
                optuna.create_trial(
                    params={name: trial.params[name] for name in varied},
                    distributions=distributions,
                    value=trial.scores[objective],
                )
            )
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return {name: float(found.get(name, 0.0)) for name in names}


def _choices(trials: Sequence[TrialSnapshot], name: str) -> list[Any]:
    """The values of a setting, in a stable order."""
    return sorted({trial.params[name] for trial in trials}, key=str)
