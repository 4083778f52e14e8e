"""The search over a made-up machine: what it proposes, and when it ends."""

import math

import numpy as np
import pytest

from engine.config.settings import PrecisionConfig
from engine.contract.requests import Workload
from tests.fakes.fake_engine import BITS_PER_BYTE, facts_of
from tests.fakes.study import BUDGET_BYTES
from tuner.definition.study import Constraints, StudyDefinition
from tuner.pareto import dominance
from tuner.search.acquisition import (
    MIN_IMPROVEMENT,
    OPTIMISTIC_QUALITY,
    Acquisition,
    Measured,
    Proposal,
    optimistic_quality,
)
from tuner.search.candidates import Candidates
from tuner.search.space import build_space

OBJECTIVES = ("output_tps", "tpot_ms", "quality")
SIGNS = [1, -1, 1]
WORK = Workload("w", ("a", "b", "c", "d"), prompt_tokens=8, output_tokens=8)


@pytest.fixture(scope="module")
def candidates() -> Candidates:
    definition = StudyDefinition.model_validate(
        {"model": "m", "budget": {"vram_bytes": BUDGET_BYTES}}
    )
    return Candidates(build_space(definition, facts_of("m"), WORK))


def truth(candidates: Candidates, index: int) -> tuple[float, float, float]:
    item = candidates.items[index]
    width, together = item.config.precision.bits / 16, item.config.batch.count
    depth = 0.9 if item.config.prefetch.depth == 1 else 1.0
    step_ms = (2 + 4 * width + 30 * width * (1 - item.fraction) ** 1.3 * depth) * together**0.4
    quality = BITS_PER_BYTE[16] / BITS_PER_BYTE[item.config.precision.bits]
    return 1000 * together / step_ms, step_ms, quality


def run(candidates: Candidates, index: int) -> Measured:
    tps, step_ms, quality = truth(candidates, index)
    speeds = {"output_tps": tps, "tpot_ms": step_ms, "ttft_ms": 20 * step_ms}
    return Measured(index, speeds, dict.fromkeys(speeds, 0.01), quality, True)


def hypervolume(candidates: Candidates, indices: list[int]) -> float:
    every = [truth(candidates, i) for i in range(len(candidates))]
    reference = [s * min(s * p[k] for p in every) for k, s in enumerate(SIGNS)]
    return dominance.hypervolume([truth(candidates, i) for i in indices], reference, SIGNS)


def searched(candidates: Candidates, acquisition: Acquisition, trials: int) -> list[int]:
    default = candidates.index_of(candidates.space.default())
    assert default is not None
    measured = [run(candidates, default)]
    while len(measured) < trials:
        proposal = acquisition.propose(measured)
        if proposal is None:
            break
        measured.append(run(candidates, proposal.index))
    return [one.index for one in measured]


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_with_predictions_a_handful_of_trials_holds_the_front(candidates: Candidates, bias: float):
    wrong = [bias * (1 - item.config.precision.bits / 16) for item in candidates.items]
    every = [truth(candidates, i) for i in range(len(candidates))]
    logs = {
        "output_tps": np.log([p[0] for p in every]) - np.array(wrong),
        "tpot_ms": np.log([p[1] for p in every]) + np.array(wrong),
        "ttft_ms": np.log([20 * p[1] for p in every]) + np.array(wrong),
    }
    found = searched(candidates, Acquisition(candidates, OBJECTIVES, Constraints(), logs), 14)
    whole = hypervolume(candidates, list(range(len(candidates))))
    assert hypervolume(candidates, found) > 0.97 * whole


def test_without_predictions_it_beats_drawing_at_random(candidates: Candidates):
    found = searched(candidates, Acquisition(candidates, OBJECTIVES, Constraints()), 20)
    rng = np.random.default_rng(1)
    drawn = [
        hypervolume(candidates, rng.choice(len(candidates), 20, replace=False).tolist())
        for _ in range(20)
    ]
    assert hypervolume(candidates, found) > np.median(drawn)


def test_it_ends_when_nothing_improves_enough(candidates: Candidates):
    found = searched(
        candidates, Acquisition(candidates, OBJECTIVES, Constraints()), len(candidates)
    )
    assert len(found) < len(candidates)
    whole = hypervolume(candidates, list(range(len(candidates))))
    assert hypervolume(candidates, found) > 0.95 * whole


def test_a_limit_keeps_it_away_from_what_breaks_it(candidates: Candidates):
    limits = Constraints(min_quality=0.95)
    found = searched(candidates, Acquisition(candidates, OBJECTIVES, limits), 12)
    coarse = [i for i in found if candidates.items[i].config.precision.bits == 2]
    assert len(coarse) <= 1  # one shows that it breaks the limit, or none is tried


def test_what_runs_elsewhere_is_not_proposed_again(candidates: Candidates):
    acquisition = Acquisition(candidates, OBJECTIVES, Constraints())
    default = candidates.index_of(candidates.space.default())
    assert default is not None
    measured = [run(candidates, default)]
    first = acquisition.propose(measured)
    assert first is not None
    second = acquisition.propose(measured, taken=[first.index])
    assert second is not None
    assert second.index not in (first.index, default)


def test_points_that_resolve_alike_are_one_candidate(candidates: Candidates):
    assert len({item.config.digest() for item in candidates.items}) == len(candidates)
    for item in candidates.items:
        assert candidates.index_of(item.point) is not None
        assert math.isfinite(item.fraction)


def test_what_is_worth_a_trial_is_not_hidden_by_what_is_cheaper(candidates: Candidates):
    """The best per second may improve too little; another one that improves enough goes on."""
    acquisition = Acquisition(candidates, OBJECTIVES, Constraints())
    cheap, dear = Proposal(0, 0.9 * MIN_IMPROVEMENT, 2.0), Proposal(1, 5 * MIN_IMPROVEMENT, 20.0)
    acquisition.rank = lambda measured, taken=(), most=1: [cheap, dear][:most]  # type: ignore[method-assign]
    assert acquisition.propose([]) == dear


def test_published_codes_are_thought_to_lose_nothing():
    kept = PrecisionConfig(bits=4, prequantized=True)
    assert optimistic_quality(kept) == 1.0
    assert optimistic_quality(PrecisionConfig(bits=4)) == OPTIMISTIC_QUALITY[4]
