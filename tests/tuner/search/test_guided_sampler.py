"""Our search behind Optuna's interface: several workers, one storage."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest

from tuner.search.guided_sampler import GuidedSampler

POINTS = [{"depth": depth, "bits": bits} for depth in (0, 1) for bits in (16, 8)]
SPACE = {
    "depth": optuna.distributions.CategoricalDistribution((0, 1)),
    "bits": optuna.distributions.CategoricalDistribution((16, 8)),
}


@dataclass
class FirstFree:
    """A searcher that proposes the first point that does not run. blind: how often it sees none of
    the others, as a worker that asks at the same moment does not."""

    blind: int = 0
    saw: list[list[Any]] = field(default_factory=list)

    def propose(
        self, trials: Sequence[Any], running: Sequence[Any], within_s: float | None = None
    ) -> Any:
        self.saw.append(list(running))
        known = [] if len(self.saw) <= self.blind else self.saw[-1]
        return next((point for point in POINTS if point not in known), None)


@pytest.fixture
def storage() -> optuna.storages.InMemoryStorage:
    return optuna.storages.InMemoryStorage()


def worker(storage: Any, searcher: Any) -> Any:
    sampler = GuidedSampler(searcher, lambda: (), optuna.samplers.RandomSampler(seed=0))
    return optuna.create_study(
        storage=storage, study_name="s", sampler=sampler, load_if_exists=True
    )


def test_what_another_worker_is_about_to_run_is_taken(storage: Any):
    asked = [worker(storage, FirstFree()).ask() for _ in range(3)]  # none suggested anything yet
    chosen = [
        {name: trial.suggest_categorical(name, own.choices) for name, own in SPACE.items()}
        for trial in asked
    ]
    assert chosen == POINTS[:3]


def test_of_two_that_choose_the_same_at_once_the_later_chooses_again(storage: Any):
    first, second = worker(storage, FirstFree()).ask(), worker(storage, FirstFree(blind=1)).ask()
    chosen = [
        {name: trial.suggest_categorical(name, own.choices) for name, own in SPACE.items()}
        for trial in (first, second)
    ]
    assert chosen == POINTS[:2]


def test_queued_points_are_taken_and_left_alone(storage: Any):
    study = worker(storage, FirstFree())
    study.enqueue_trial(POINTS[0])
    queued, free = study.ask(SPACE), study.ask(SPACE)
    assert queued.params == POINTS[0]
    assert free.params == POINTS[1]


def test_a_lost_trial_that_is_tried_again_runs_what_was_chosen_for_it(storage: Any):
    lost = worker(storage, FirstFree()).ask()
    lost.suggest_categorical("depth", SPACE["depth"].choices)  # and dies before the other one
    kept = storage.get_trial(lost._trial_id)
    storage.set_trial_state_values(lost._trial_id, optuna.trial.TrialState.FAIL)
    again = worker(storage, FirstFree())
    again.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=kept.params,
            distributions=kept.distributions,
            system_attrs={**kept.system_attrs, "failed_trial": lost.number},
        )
    )
    retried = again.ask()
    other = worker(storage, FirstFree()).ask(SPACE)
    chosen = {name: retried.suggest_categorical(name, own.choices) for name, own in SPACE.items()}
    assert chosen == POINTS[0]
    assert other.params == POINTS[1]
