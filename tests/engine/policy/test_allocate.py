"""Slots go to the layers that the rule names."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ConfigError
from engine.policy import registry
from engine.policy.allocate import hit_curves
from tests.engine.policy.made import make_context, make_trace


def allocate(name: Any, slots: int, layers: int, experts: int, **more: Any) -> tuple[int, ...]:
    context = make_context(layers, experts, **more)
    return registry.ALLOCATIONS[name](context).allocate(slots, layers, experts)


@pytest.mark.parametrize(
    ("shallow", "slots", "fractions"),
    [
        (2, 24, (8, 8, 4, 4)),
        (2, 23, (8, 8, 4, 3)),
        (2, 12, (8, 2, 1, 1)),
        (2, 4, (1, 1, 1, 1)),
        (0, 9, (3, 2, 2, 2)),
        (9, 20, (8, 8, 3, 1)),
        (-1, 14, (8, 2, 2, 2)),
    ],
)
def test_shallow_layers_fill_first_and_no_layer_starves(
    shallow: int, slots: int, fractions: tuple[int, ...]
) -> None:
    assert allocate("shallow_first", slots, 4, 8, cache__shallow_layers=shallow) == fractions


def test_four_of_twenty_eight_layers_are_shallow_by_default() -> None:
    fractions = allocate("shallow_first", 28 * 4, 28, 8)
    assert fractions == (8,) * 4 + (4,) * 8 + (3,) * 16


# Layer 0 repeats one expert; layer 1 goes round three; layer 2 changes between two.
HISTORY = make_trace([[[0], [n % 3], [n % 2]] for n in range(12)])


def test_hit_curves_count_by_stack_distance() -> None:
    curves = hit_curves(HISTORY, 3, 4)
    assert curves[0] == [0, 11, 11, 11, 11, 12]
    assert curves[1] == [0, 0, 0, 9, 9, 12]
    assert curves[2] == [0, 0, 10, 10, 10, 12]


def test_experts_of_one_pass_do_not_age_each_other() -> None:
    (curve,) = hit_curves(make_trace([[[0, 1]], [[1, 2]], [[0, 1]]]), 1, 4)
    # Pass 2 finds 1 at distance 1; pass 3 finds 1 at 0 and 0 at 2.
    assert curve == [0, 1, 2, 3, 3, 6]


def test_slots_follow_misses_at_the_uniform_share() -> None:
    # Two slots each: misses 1, 12 and 2, so layer 1 takes what is left until it is full.
    assert allocate("by_misses", 6, 3, 4, chosen=1, history=HISTORY) == (1, 4, 1)
    assert allocate("by_misses", 8, 3, 4, chosen=1, history=HISTORY) == (1, 4, 3)


def test_a_profile_gives_each_slot_where_it_brings_most_hits() -> None:
    # The second slot of layer 2 brings 10 hits; the others' second ones nothing.
    assert allocate("by_profile", 4, 3, 4, chosen=1, history=HISTORY) == (1, 1, 2)


@pytest.mark.parametrize("name", ["by_misses", "by_profile"])
def test_without_a_trace_an_error_says_to_give_one(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"as cache\.options\.trace"):
        allocate(name, 6, 3, 4)


@pytest.mark.parametrize("name", ["by_misses", "by_profile"])
def test_a_trace_of_another_model_is_an_error(name: Any) -> None:
    with pytest.raises(ConfigError, match="of this model"):
        allocate(name, 8, 4, 4, history=HISTORY)
