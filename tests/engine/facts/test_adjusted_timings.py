"""Timings at a run's precision: products with activations of 8 bits take the time of their own."""

import json
from dataclasses import replace

import pytest

from engine.facts.adjusted_timings import at_precision, corrected
from engine.facts.estimated_timings import profiled_timings
from engine.facts.machine import MachineProfile
from engine.facts.timings import ModelTimings
from tests.fakes.fake_engine import facts_of

TOKENS = (1, 2, 4, 16, 64, 256)
KERNELS = {f"{bits}/{n}": 1.0 + n / 8 for bits in (16, 8, 4, 3, 2) for n in TOKENS}
ROUNDED = {f"{bits}a8/{n}": 0.5 + n / 16 for bits in (8, 4, 3, 2) for n in TOKENS}


def timings(kernels: dict[str, float]) -> ModelTimings:
    profile = MachineProfile({"65536": 2e9}, 8e12, None, kernels, products="native")
    return profiled_timings(profile, facts_of("m"), "cpu")


def test_rounded_activations_have_times_of_their_own_where_they_were_timed():
    found = timings({**KERNELS, **ROUNDED})
    plain, rounded = at_precision(found, 4), at_precision(found, 4, 8)
    for before, after in ((plain, rounded), (plain.ready, rounded.ready)):
        assert before is not None
        assert after is not None
        for n in TOKENS:
            assert after.expert_s[4][n] < before.expert_s[4][n]
            assert after.expert_s[16][n] == before.expert_s[16][n]
            assert after.non_expert_s[n] < before.non_expert_s[n]
    assert at_precision(found, 16, 8).non_expert_s == found.non_expert_s


def test_without_times_they_take_as_long_as_others():
    found = timings(KERNELS)
    assert found.rounded is None
    assert at_precision(found, 8, 8) == at_precision(found, 8)


def test_they_are_kept_and_corrected_like_the_others():
    found = timings({**KERNELS, **ROUNDED})
    assert ModelTimings.from_json(json.loads(json.dumps(found.to_json()))) == found
    twice = corrected(found, {"compute": 2.0, "non_expert": 3.0}, {"compute": 5.0})
    before, after = found.rounded, twice.rounded
    assert before is not None
    assert after is not None
    assert after.expert_s[4][1] == 2 * before.expert_s[4][1]
    assert after.coarser_non_expert_s[4][1] == 3 * before.coarser_non_expert_s[4][1]
    assert after.ready_expert_s[4][1] == 5 * before.ready_expert_s[4][1]
    none = replace(before, expert_s={4: {1: 0.0}})
    with pytest.raises(ValueError, match="takes no time"):
        ModelTimings.from_json(json.loads(json.dumps(replace(found, rounded=none).to_json())))
