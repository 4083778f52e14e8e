"""Our search as an Optuna sampler, so that storage, queue and heartbeats are Optuna's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from tuner.search.searcher import Searcher
from tuner.store.snapshots import TrialSnapshot

CHOSEN = "chosen"
MOST_TIES = 8


def _others(study: Any, trial: Any) -> dict[int, dict[str, Any]]:
    """The points of other running trials, by number. Their settings are stored one by one, so a
    chosen or queued point takes precedence over them."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return {
        other.number: other.system_attrs.get(CHOSEN)
        or other.system_attrs.get("fixed_params")
        or dict(other.params)
        for other in running
        if other.number != trial.number
    }


class GuidedSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]  # optuna is not followed
    """Proposes the searcher's points; once it has none left, those of `fallback`.

    trials: returns all trials of the study, from our store; left_s: the seconds that a trial may
    still take, None for no limit.
    """

    def __init__(
        self,
        searcher: Searcher,
        trials: Callable[[], Sequence[TrialSnapshot]],
        fallback: Any,
        left_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._searcher = searcher
        self._trials = trials
        self._left_s = left_s
        self._fallback = fallback
        self._chosen: dict[int, dict[str, Any]] = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """Empty: before_trial chooses a point as a whole."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Empty, as the search space is."""
        return {}

    def before_trial(self, study: Any, trial: Any) -> None:
        """Chooses the point, unless it was enqueued, and publishes it to the other workers at once;
        if several chose the same one, the lowest trial number keeps it. A lost trial that is
        retried keeps its chosen point, even if not all of it had been suggested yet."""
        if trial.system_attrs.get("fixed_params"):
            return
        if CHOSEN in trial.system_attrs:
            self._chosen[trial.number] = dict(trial.system_attrs[CHOSEN])
            return
        others = _others(study, trial)
        for _ in range(MOST_TIES):
            point = self._searcher.propose(self._trials(), list(others.values()), self._left_s())
            if point is None:
                return
            self._chosen[trial.number] = dict(point)
            study._storage.set_trial_system_attr(trial._trial_id, CHOSEN, dict(point))
            others = _others(study, trial)
            if all(number > trial.number for number, own in others.items() if own == point):
                return

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """One setting of the chosen point."""
        point = self._chosen.get(trial.number)
        if point is not None:
            return point[name]
        return self._fallback.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Forgets the point; the fallback learns."""
        self._chosen.pop(trial.number, None)
        self._fallback.after_trial(study, trial, state, values)
