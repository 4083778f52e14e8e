"""The Gaussian-process sampler in a child proposes what it would here, and may fail."""

import itertools
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from tuner.search.gp_sampler import ChildGpSampler

STARTUP = 4
SPACE = {
    "bits": optuna.distributions.CategoricalDistribution((16, 8, 4, 2)),
    "fraction": optuna.distributions.CategoricalDistribution(("25%", "50%", "100%")),
}
POINTS = [dict(zip(SPACE, v, strict=True)) for v in itertools.product((16, 4), ("25%", "100%"))]


@pytest.fixture
def sampler() -> Iterator[ChildGpSampler]:
    made = ChildGpSampler(seed=3, startup=STARTUP)
    yield made
    made.close()


def study_of(sampler: Any, limit: float = 0.0) -> Any:
    """Four trials; limit: how far the last one breaks its constraint."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for number, point in enumerate(POINTS):
        values = [30.0 - point["bits"] + number, float(point["bits"])]
        broken = limit if number == len(POINTS) - 1 else 0.0
        study.add_trial(
            optuna.create_trial(
                params=point,
                distributions=SPACE,
                values=values,
                constraints={"quality": broken, "ttft": 0.0},
            )
        )
    return study


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_the_child_proposes_what_the_sampler_would_here(sampler: ChildGpSampler, limit: float):
    here = optuna.samplers.GPSampler(
        seed=3, n_startup_trials=STARTUP, deterministic_objective=False
    )
    expected = study_of(here, limit).ask(SPACE).params
    assert study_of(sampler, limit).ask(SPACE).params == expected


def test_the_first_points_need_no_child(sampler: ChildGpSampler):
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    assert set(study.ask(SPACE).params) == set(SPACE)
    assert sampler._child is None


def test_an_enqueued_point_is_not_asked_for(sampler: ChildGpSampler):
    study = study_of(sampler)
    study.enqueue_trial(POINTS[1])
    assert study.ask(SPACE).params == POINTS[1]
    assert sampler._child is None


def test_a_child_that_died_costs_one_proposal(
    sampler: ChildGpSampler, caplog: pytest.LogCaptureFixture
):
    study = study_of(sampler)
    study.tell(study.ask(SPACE), [1.0, 2.0])
    assert "at random" not in caplog.text
    first = sampler._child
    assert first is not None
    first.kill()
    first.wait()
    study.tell(study.ask(SPACE), [2.0, 3.0])
    assert "drew a point at random" in caplog.text
    study.tell(study.ask(SPACE), [3.0, 4.0])
    assert caplog.text.count("at random") == 1
    assert sampler._child is not None
    assert sampler._child.poll() is None
