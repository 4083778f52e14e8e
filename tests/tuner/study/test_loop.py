"""What workers of one study fraction: when to stop, whom to give up, and what differs between
them."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from tests.tuner.study.test_pruning import trial
from tuner.definition.study import StudyDefinition
from tuner.study import loop as trial_loop
from tuner.study.loop import TrialLoop
from tuner.study.optuna_storage import fail_lost, keep_deadline, seconds_left

Running = optuna.trial.TrialState.RUNNING
Failed = optuna.trial.TrialState.FAIL


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    return optuna.create_study(storage=f"sqlite:///{tmp_path / 'memory.db'}", study_name="s")


def test_the_leading_process_says_when_no_trial_begins_any_more(memory: Any):
    assert seconds_left(memory) is None
    keep_deadline(memory, 100.0)
    assert seconds_left(memory) == pytest.approx(100.0, abs=5)
    keep_deadline(memory, -1.0)
    assert seconds_left(memory) == 0.0
    keep_deadline(memory, None)
    assert seconds_left(memory) is None


def test_what_our_store_ended_is_given_up_and_what_it_does_not_know_is_not(memory: Any):
    for _ in range(5):
        memory.ask()
    kept = [
        trial(0, (1.0,), state="RUNNING"),
        trial(1, (1.0,), state="INTERRUPTED"),
        trial(2, (1.0,), worker="elsewhere 7 7"),  # about to tell of its end
        trial(3, (1.0,), worker=f"{socket.gethostname()} 999999999 7"),  # will never
    ]
    fail_lost(memory, kept)
    states = [one.state for one in memory.trials]
    assert states == [Running, Failed, Running, Failed, Running]


def seed(sampler: str, leading: bool, worker: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(trial_loop, "own_id", lambda: worker)
    made = StudyDefinition.model_validate({"model": "m", "sampler": sampler, "seed": 7})
    context, state = SimpleNamespace(definition=made), SimpleNamespace(trials=())
    loop = TrialLoop(context, state, None, None, lambda trial: None)  # type: ignore[arg-type]
    return loop._seed(leading)


def test_workers_that_begin_together_draw_other_points(monkeypatch: pytest.MonkeyPatch):
    seeds = [seed("random", False, f"host {pid} 1", monkeypatch) for pid in range(50)]
    seeds.append(seed("random", True, "host 1 1", monkeypatch))
    assert len(set(seeds)) == 51
    assert seeds[-1] == 7


def test_workers_share_one_numbering_of_a_grid(monkeypatch: pytest.MonkeyPatch):
    seeds = [seed("grid", leading, "host 1 1", monkeypatch) for leading in (True, False)]
    assert seeds == [7, 7]
