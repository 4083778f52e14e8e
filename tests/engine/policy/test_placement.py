"""Where missing experts are computed, and what moves to the device behind."""

import pytest

from engine.errors import ConfigError
from engine.policy.events import PassStart, Routing
from engine.policy.placement import EarliestEnd
from engine.policy.registry import build_policy
from engine.policy.steps import ON_HOST
from tests.engine.policy.made import make_context

QUICK_HOST = {1: 0.25, 64: 16.0}  # four experts of one token in the time of a transfer


def demand(placement: EarliestEnd, *tokens: int) -> frozenset[int]:
    placement.begin_layer()
    return placement.on_host(list(enumerate(tokens)))


def test_misses_of_one_token_stay_on_the_host_until_the_link_would_end_first():
    assert demand(EarliestEnd(QUICK_HOST), 1, 1, 1, 1) == {0, 1, 2, 3}
    assert len(demand(EarliestEnd(QUICK_HOST), *[1] * 6)) == 5  # the fifth would end at 1.25


def test_an_expert_with_many_tokens_moves():
    assert demand(EarliestEnd(QUICK_HOST), 1, 64, 1) == {0, 2}


def test_a_slow_host_computes_nothing():
    assert demand(EarliestEnd({1: 3.0}), 1, 1) == frozenset()
    assert demand(EarliestEnd({1: 3.0}), 1, 1, 1) == {2}  # the link would end no sooner


def test_micro_batches_of_a_layer_share_host_and_link():
    placement = EarliestEnd({1: 0.6})
    placement.begin_layer()
    assert placement.on_host([(0, 1)]) == {0}
    assert placement.on_host([(1, 1)]) == frozenset()  # 1.2 on the host, 1 over the link
    placement.begin_layer()
    assert placement.on_host([(1, 1)]) == {1}


def test_as_many_move_behind_as_the_link_carries_meanwhile():
    placement = EarliestEnd(QUICK_HOST)
    moved = []
    for _ in range(8):
        chosen = sorted(demand(placement, 1, 1))  # half of a transfer's time
        moved.append(len(placement.admitted(chosen)))
    assert moved == [0, 1] * 4


def test_time_that_nobody_used_does_not_pile_up():
    placement = EarliestEnd({1: 0.9})
    for _ in range(20):
        demand(placement, 1)
        placement.admitted([])
    demand(placement, 1)
    assert len(placement.admitted([5, 6, 7])) <= 2


def policy_of(**overlay: object):
    context = make_context(layers=1, placement__name="earliest", **overlay)
    return build_policy(context, 3, host_compute=True)


def run_pass(policy, *chosen: int):
    policy.begin_pass(PassStart("decode", (1,), None))
    steps = policy.routed(0, 0, Routing([list(chosen)]))
    more, fetches = policy.layer_routed()
    policy.computed()
    policy.end_pass()
    policy.cache.check_integrity()
    return [*steps, *more], fetches


def test_what_the_host_computed_and_was_admitted_is_a_hit_next_time():
    policy = policy_of(placement__options__host_ratios={"1": 0.5})
    steps, fetches = run_pass(policy, 0, 1)
    assert [step.slot for step in steps] == [ON_HOST, ON_HOST]
    assert [fetch.expert.expert for fetch in fetches] == [0]
    steps, _ = run_pass(policy, 0, 1)
    assert [(step.expert.expert, step.hit) for step in steps] == [(0, True), (1, False)]


def test_an_admitted_expert_takes_no_slot_that_its_layer_uses():
    policy = policy_of(placement__options__host_ratios={"1": 0.4})
    for chosen in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 1, 2, 3), (4, 5, 0, 1)):
        steps, fetches = run_pass(policy, *chosen)
        used = {step.slot for step in steps if step.slot != ON_HOST}
        assert not used & {fetch.slot for fetch in fetches}


@pytest.mark.parametrize("given", [None, {}, {"1": 0}, {"one": 2}, {"1": "fast"}, 3])
def test_ratios_that_are_none_are_refused_with_an_example(given: object):
    with pytest.raises(ConfigError, match=r"such as \{1: 0.3, 64: 4\}"):
        policy_of(placement__options__host_ratios=given)
