"""Each eviction picks the victim that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.policy import registry
from engine.policy.evict.arc import ArcEviction
from engine.policy.evict.base import Eviction
from engine.policy.evict.lfu import LfuEviction
from engine.policy.evict.weighted import WeightedEviction, Weights
from engine.types import ExpertId
from tests.engine.policy.made import make_context, make_trace

A, B, C, D, E = (ExpertId(0, index) for index in range(5))


def serve(eviction: Eviction, capacity: int, accesses: Iterable[str]) -> tuple[int, str]:
    """Hits and victims when single experts A, B, ... are demanded one after the other."""
    names = {"A": A, "B": B, "C": C, "D": D, "E": E}
    residents: dict[ExpertId, str] = {}
    hits, victims = 0, ""
    for name in accesses:
        expert = names[name]
        if expert in residents:
            hits += 1
            eviction.use(expert)
            continue
        if len(residents) == capacity:
            victim = eviction.victim(list(residents), expert)
            victims += residents.pop(victim)
            eviction.forget(victim)
        residents[expert] = name
        eviction.insert(expert)
    return hits, victims


def build(name: Any, **overlay: Any) -> Eviction:
    return registry.EVICTIONS[name](make_context(4, cache__eviction=name, **overlay))


def test_lru_evicts_the_expert_unused_for_longest() -> None:
    assert serve(build("lru"), 3, "ABCAD") == (1, "B")


def test_arc_lets_a_scan_pass_and_follows_its_ghosts() -> None:
    arc = ArcEviction()
    # A is used twice: B, C and D pass through T1 beside it.
    assert serve(arc, 2, "AABCDA") == (2, "BC")
    assert arc.target == 0


def test_arc_moves_its_target_up_for_a_recent_ghost_and_down_for_a_frequent_one() -> None:
    up, down = ArcEviction(), ArcEviction()
    # C returns from B1: p = 1 and T1 = [D] is within it, so A leaves T2.
    assert serve(up, 2, "AABCDAC") == (2, "BCA")
    assert up.target == 1
    # A returns from B2: p = 0 and D leaves T1.
    assert serve(down, 2, "AABCDACA") == (2, "BCAD")
    assert down.target == 0


def test_a_coarse_step_moves_the_target_by_a_whole_list() -> None:
    textbook, coarse = build("arc"), build("arc", cache__options__arc_step="coarse")
    # B returns from B1 while T1 = [C, D], T2 = [A]: p = 1 evicts from T1, p = 2 from T2.
    assert serve(textbook, 3, "AABCDB") == (1, "BC")
    assert serve(coarse, 3, "AABCDB") == (1, "BA")


def test_arc_takes_the_other_list_where_all_of_one_is_pinned() -> None:
    arc = ArcEviction()
    serve(arc, 3, "AABC")  # T1 = [B, C], T2 = [A]
    assert arc.victim([A, B, C], D) == B
    assert arc.victim([A, C], D) == C
    assert arc.victim([A], D) == A


@given(st.text("ABCDE", max_size=40), st.integers(1, 4), st.booleans())
def test_arc_remembers_no_more_than_twice_its_capacity(
    accesses: str, capacity: int, coarse: bool
) -> None:
    arc = ArcEviction(coarse=coarse)
    serve(arc, capacity, accesses)
    recent, frequent = (
        len(arc._t1) + len(arc._b1),
        len(arc._t2) + len(arc._b2),
    )
    assert recent <= capacity
    assert recent + frequent <= 2 * capacity
    assert 0 <= arc.target <= capacity


def test_lfu_forgets_by_passes() -> None:
    def victim(decay: float) -> ExpertId:
        lfu = LfuEviction(decay)
        for used in [(A, B), (A,), (A,), (B,), (B,)]:
            lfu.begin_layer(0)
            for expert in used:
                lfu.use(expert)
        lfu.begin_layer(0)
        lfu.use(A)  # A 4 times, B 3 times, but later
        return lfu.victim([A, B], C)

    assert victim(1.0) == B
    # decay 1/2, as of pass 6: A 1/32 + 1/16 + 1/8 + 1 = 1.22, B 1/32 + 1/4 + 1/2 = 0.78.
    assert victim(0.5) == B
    lfu = LfuEviction(0.5)
    for used in [(A, A), (), (B,)]:
        lfu.begin_layer(0)
        for expert in used:
            lfu.use(expert)
    assert lfu.victim([A, B], C) == A  # A 2/4, B 1


def test_lfu_knows_an_expert_that_returns() -> None:
    assert serve(LfuEviction(1.0), 2, "AAABCBD") == (2, "BCB")


def test_weights_trade_recency_for_frequency() -> None:
    def victim(*weights: float) -> ExpertId:
        weighted = WeightedEviction(Weights(*weights), layers=4)
        for used in (A, A, A, B):
            weighted.begin_layer(0)
            weighted.use(used)
        return weighted.victim([A, B], C)

    assert victim(0.6, 0.4, 0.0, 0.0) == B  # A .6*3/4 + .4*3/4 = .75, B .6*4/4 + .4*1/4 = .70
    assert victim(0.8, 0.2, 0.0, 0.0) == A  # A .75, B .85


def test_weights_protect_high_precision_and_the_layer_that_comes_next() -> None:
    high = WeightedEviction(Weights(0.0, 0.0, 1.0, 0.0), layers=4)
    high.begin_layer(0)
    high.use(A, high=False)
    high.use(B)
    high.use(A, high=False)
    assert high.victim([B, A], C) == A
    near = WeightedEviction(Weights(0.0, 0.0, 0.0, 1.0), layers=4)
    near.begin_layer(0)
    near.begin_layer(1)
    next_, later, passed = ExpertId(2, 0), ExpertId(3, 0), ExpertId(0, 0)
    assert near.victim([next_, later, passed], ExpertId(1, 1)) == passed  # 3/4, 1/2, 1/4
    assert near.victim([next_, later], ExpertId(1, 1)) == later


def test_weighted_records_start_anew_with_each_sequence() -> None:
    weighted = build("hobbit")
    for _ in range(3):
        weighted.begin_layer(0)
        weighted.use(A)
    weighted.begin_sequences()
    weighted.begin_layer(0)
    weighted.use(B)
    assert weighted.victim([A, B], C) == A


@pytest.mark.parametrize("weights", [[1, 1, 0, 0], [0.5, 0.5], [2, -1, 0, 0], "a,b,c,d", 3])
def test_weights_that_are_no_simplex_are_an_error(weights: Any) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        build("hobbit", cache__options__weights=weights)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("lfu", "decay", 0), ("lfu", "decay", "often"), ("arc", "arc_step", "coarser")],
)
def test_an_option_out_of_range_names_its_path(name: Any, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"cache.options.{option}"):
        build(name, **{f"cache__options__{option}": value})


def test_probability_times_frequency_leaves_first_where_smallest() -> None:
    p_freq = build("p_freq")
    for expert, uses in ((A, 4), (B, 1), (C, 10)):
        for _ in range(uses):
            p_freq.use(expert)
    p_freq.expect(A, 0.1)
    p_freq.expect(B, 0.5)
    assert p_freq.victim([A, B, C], D) == C  # .4, .5 and, never expected, .1
    assert p_freq.victim([A, B], D) == A
    p_freq.expect(A, 0.9)
    assert p_freq.victim([A, B], D) == B


def test_belady_without_a_future_is_lru() -> None:
    blind = registry.EVICTIONS["belady"](make_context())
    assert serve(blind, 3, "ABCAD") == serve(build("lru"), 3, "ABCAD")


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_belady_misses_as_little_as_any_policy_can(stream: list[int], capacity: int) -> None:
    trace = make_trace([[[expert]] for expert in stream])
    context = make_context(1, chosen=1, future=trace)
    belady = registry.EVICTIONS["belady"](context)

    def moves_on() -> Iterator[str]:
        for expert in stream:
            context.future.begin_pass()
            context.future.begin_layer(0)
            yield "ABCDE"[expert]

    hits, _ = serve(belady, capacity, moves_on())
    assert len(stream) - hits == fewest_misses(tuple(stream), capacity)


def fewest_misses(stream: tuple[int, ...], capacity: int) -> int:
    """By trying every victim."""

    @cache
    def after(place: int, held: frozenset[int]) -> int:
        if place == len(stream):
            return 0
        wanted = stream[place]
        if wanted in held:
            return after(place + 1, held)
        if len(held) < capacity:
            return 1 + after(place + 1, held | {wanted})
        return 1 + min(after(place + 1, held - {victim} | {wanted}) for victim in held)

    return after(0, frozenset())
