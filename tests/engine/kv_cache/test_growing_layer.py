"""Keys and values that grow in place: the same as transformers' own, whatever is done to them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from engine.kv_cache.growing_layer import STEP_TOKENS, GrowingLayer

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 90)),
        st.tuples(st.just("crop"), st.integers(1, 40)),
        st.tuples(st.just("replace"), st.just(0)),
        st.tuples(st.just("repeat"), st.just(2)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


@given(steps=steps, most=st.integers(1, 300))
@settings(deadline=None, max_examples=60)
def test_it_holds_what_the_plain_layer_holds(steps: list[tuple[str, int]], most: int) -> None:
    plain, growing = DynamicLayer(), GrowingLayer(most)
    generator = torch.Generator().manual_seed(0)
    sequences = 1
    for action, number in [("append", 3), *steps]:
        if action == "append":
            states = torch.randn(2, sequences, 2, number, 4, generator=generator)
            expected = plain.update(states[0], states[1])
            found = growing.update(states[0], states[1])
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        elif plain.get_seq_length() == 0:
            continue
        elif action == "crop" and number < plain.get_seq_length():
            plain.crop(-number)
            growing.crop(-number)
        elif action == "replace":
            for layer in (plain, growing):
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        elif action == "repeat" and sequences < 8:
            sequences *= number
            plain.batch_repeat_interleave(number)
            growing.batch_repeat_interleave(number)
        elif action == "reset":
            plain.reset()
            growing.reset()
        assert plain.get_seq_length() == growing.get_seq_length()


def test_a_token_copies_nothing_that_is_held() -> None:
    layer = GrowingLayer(1000)
    layer.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    places = set()
    for _ in range(STEP_TOKENS):
        keys, _ = layer.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
        places.add(keys.data_ptr())
    assert len(places) == 1


def test_the_room_ends_where_the_capacity_does() -> None:
    layer = GrowingLayer(10)
    layer.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    assert layer._rooms[0].shape[2] == 10
    layer.update(torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 7, 4))  # more than was said
    assert layer._rooms[0].shape[2] == 12
