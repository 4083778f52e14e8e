"""A simulated study on a grid of three configurations: what a visit costs, and what it shows."""

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.compare_samplers import Simulation, arrival, computing
from experiments.reference_grid import Row, Run
from experiments.sampler_plots import Step, fraction_at
from tuner.definition.study import Repeats

BEST, WORSE, COARSE = {"bits": 8}, {"bits": 16}, {"bits": 2}
POINTS = [BEST, WORSE, COARSE]


def run(tps: float, repeats: int = 3) -> Run:
    """Configuring takes 1 s, the first repeat 5, each other one 2."""
    samples = [{"output_tps": tps, "tpot_ms": 1000 / tps, "ttft_ms": 50.0} for _ in range(repeats)]
    return Run((1.0, 5.0, *[2.0] * (repeats - 1)), tuple(samples))


@pytest.fixture
def grid() -> Any:
    """Everything of the second is worse than of the first; the third is slower and coarser still,
    and was started twice."""
    rows = [
        Row((run(100.0),), 1.0),
        Row((run(50.0),), 0.99),
        Row((run(10.0), run(12.0)), 0.5),
    ]
    candidates = SimpleNamespace(
        items=[SimpleNamespace(group=str(number)) for number in range(3)],
        index_of=lambda point: POINTS.index(point) if point in POINTS else None,
    )
    definition = SimpleNamespace(repeats=Repeats(min=2, max=3, half_width=0.05))
    return SimpleNamespace(rows=rows, candidates=candidates, definition=definition)


def visit(simulation: Simulation, point: Any) -> Any:
    trial = simulation._trial(point)
    assert trial is not None
    simulation.trials.append(trial)
    return trial


def test_a_visit_costs_configuring_and_the_repeats_that_the_rule_asks_for(grid: Any):
    simulation = Simulation(grid, seed=0)
    first = visit(simulation, BEST)
    assert (first.state, first.metrics["output_tps"].n) == ("COMPLETE", 2)  # equal: steady at once
    assert simulation.spent_s == 1 + 5 + 2
    assert simulation.found == [0]


def test_a_duplicate_goes_on_where_the_former_visit_ended(grid: Any):
    simulation = Simulation(grid, seed=0)
    visit(simulation, BEST)
    again = visit(simulation, BEST)
    assert again.metrics["output_tps"].n == 3
    assert simulation.spent_s == (1 + 5 + 2) + (1 + 5)  # another process warms up anew
    visit(simulation, BEST)  # nothing more is known of it, and still it costs
    assert simulation.spent_s == (1 + 5 + 2) + 2 * (1 + 5)
    assert simulation.found == [0]


def test_what_the_front_beats_ends_early_once_its_quality_is_known(grid: Any):
    simulation = Simulation(grid, seed=0)
    visit(simulation, BEST)
    ended = visit(simulation, WORSE)
    assert (ended.state, ended.metrics["output_tps"].n) == ("PRUNED", 1)
    assert simulation.spent_s == 8 + (1 + 5)
    assert simulation.found == [0]
    assert (ended.scores["quality"], ended.bounds) == (1.0, {"quality": 1.0})  # granted, not known


def test_a_quality_is_known_once_something_of_its_group_ran_to_its_end(grid: Any):
    simulation = Simulation(grid, seed=0)
    coarse = visit(simulation, COARSE)
    assert (coarse.state, coarse.scores["quality"], coarse.bounds) == ("COMPLETE", 0.5, {})
    assert simulation.evaluated == {"2"}


def test_a_trial_shows_one_start_and_the_truth_is_of_all(grid: Any):
    seen = {visit(Simulation(grid, seed), COARSE).scores["output_tps"] for seed in range(20)}
    assert seen == {10.0, 12.0}
    assert grid.rows[2].truth[0] == 11.0


def test_what_is_no_candidate_is_no_trial(grid: Any):
    assert Simulation(grid, seed=0)._trial({"bits": 3}) is None


def test_a_curve_says_when_a_share_arrived_and_what_was_found_by_then():
    curve = [Step(10.0, 0.5, 1.0), Step(20.0, 0.96, 2.0), Step(30.0, 0.97, 3.0)]
    assert (arrival(curve, 0.95), arrival(curve, 0.99)) == (20.0, None)
    assert (fraction_at(curve, 9.0), fraction_at(curve, 25.0)) == (0.0, 0.96)
    assert (computing(curve, 0.95), computing(curve, 0.99)) == (2.0, 3.0)
