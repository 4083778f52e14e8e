"""Which positions are kept, and what is merged into them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache.merge import Marks, kept_positions, merge, new_marks, received_attention
from engine.layout.kv import LEAST_KEPT_TOKENS, SINK_TOKENS, kept_tokens

CPU = torch.device("cpu")


def test_positions_are_kept_by_their_rank_not_by_where_their_index_stands() -> None:
    # argsort of the middle [.5 .1 .9 .8 .2 .3 .7] is [1 4 5 0 6 3 2]: read as ranks, it keeps the
    # middle positions 2, 4, 5 and 6 for "rank above 2"; the four largest are 0, 2, 3 and 6.
    middle = [0.5, 0.1, 0.9, 0.8, 0.2, 0.3, 0.7]
    importance = torch.tensor([[0.0] * SINK_TOKENS + middle + [0.0]])
    misread = (importance[0, SINK_TOKENS:-1].argsort() > 2).nonzero()[:, 0].tolist()
    kept = kept_positions(importance, SINK_TOKENS + 4 + 1)[0].tolist()
    assert kept == [0, 1, 2, 3, 4 + 0, 4 + 2, 4 + 3, 4 + 6, 11]
    assert [position - SINK_TOKENS for position in kept[SINK_TOKENS:-1]] != misread


@given(st.integers(12, 40), st.data())
def test_sinks_and_the_last_position_are_always_kept(total: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(LEAST_KEPT_TOKENS, total - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    importance = torch.rand(2, total, generator=generator)
    importance[:, :SINK_TOKENS] = 0
    importance[:, -1] = 0
    for row, kept in zip(importance, kept_positions(importance, keep).tolist(), strict=True):
        assert kept == sorted(set(kept))
        assert kept[:SINK_TOKENS] == list(range(SINK_TOKENS))
        assert kept[-1] == total - 1
        dropped = set(range(total)) - set(kept)
        least = min(float(row[position]) for position in kept[SINK_TOKENS:-1])
        assert all(float(row[position]) <= least for position in dropped)


def plain_merge(
    states: torch.Tensor, places: Sequence[float], tokens: Sequence[float], kept: Sequence[int]
) -> torch.Tensor:
    """One sequence [H, N, D]: each position by itself."""
    groups: dict[int, list[int]] = {position: [position] for position in kept}
    anchors = list(kept)[SINK_TOKENS:-1]
    for position in range(len(places)):
        if position not in groups:
            away = [abs(places[anchor] - places[position]) for anchor in anchors]
            groups[anchors[away.index(min(away))]].append(position)
    rows = []
    for position in kept:
        members = groups[position]
        total = sum(states[:, member] * tokens[member] for member in members)
        rows.append(total / sum(tokens[member] for member in members))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("keep", [8, 13, 29])
def test_merged_keys_and_values_are_those_of_a_plain_loop(keep: int) -> None:
    generator = torch.Generator().manual_seed(keep)
    batch, total = 2, 30
    keys = torch.randn(batch, 2, total, 6, generator=generator)
    values = torch.randn(batch, 1, total, 4, generator=generator)  # as in latent attention
    gaps = torch.randint(1, 4, (batch, total), generator=generator)
    marks = Marks(
        torch.rand(batch, total, generator=generator),
        torch.randint(1, 5, (batch, total), generator=generator).float(),
        gaps.cumsum(1).float(),
    )
    marks.tokens[:, [*range(SINK_TOKENS), -1]] = 1  # nothing is ever merged into these
    merged = merge(keys, values, marks, keep)
    for row in range(batch):
        kept = kept_positions(marks.importance, keep)[row].tolist()
        places, tokens = marks.place[row].tolist(), marks.tokens[row].tolist()
        for own, states in ((merged.keys, keys), (merged.values, values)):
            torch.testing.assert_close(own[row], plain_merge(states[row], places, tokens, kept))
        assert merged.marks.place[row].tolist() == [places[position] for position in kept]
    assert torch.equal(merged.marks.tokens.sum(1), marks.tokens.sum(1))
    assert torch.equal(merged.keys[:, :, :SINK_TOKENS], keys[:, :, :SINK_TOKENS])
    assert torch.equal(merged.values[:, :, -1], values[:, :, -1])


@pytest.mark.parametrize("masked", ["not at all", "by truth", "by numbers"])
def test_received_attention_is_the_sum_over_queries_of_the_mean_over_heads(masked: str) -> None:
    generator = torch.Generator().manual_seed(3)
    new, total = 5, 9
    query = torch.randn(2, 4, new, 8, generator=generator)
    key = torch.randn(2, 2, total, 8, generator=generator)
    allowed = torch.ones(new, total).tril(total - new).bool()
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    mask = {
        "not at all": None,
        "by truth": allowed[None, None],
        "by numbers": torch.zeros(new, total).masked_fill(~allowed, -1e9)[None, None],
    }[masked]
    found = received_attention(query, key, mask, 0.3)
    torch.testing.assert_close(found, weights.mean(1).sum(1))


def test_slices_of_queries_give_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(1, 2, 20, 4), torch.randn(1, 2, 30, 4)
    whole = received_attention(query, key, None, None)
    monkeypatch.setattr("engine.kv_cache.merge.SCORE_SLICE_BYTES", 3 * 4 * 2 * 30)
    torch.testing.assert_close(received_attention(query, key, None, None), whole)


def test_new_tokens_stand_for_themselves_and_have_received_nothing() -> None:
    marks = new_marks(2, 5, 3, CPU)
    assert marks.importance.tolist() == [[0, 0, 0]] * 2
    assert marks.tokens.tolist() == [[1, 1, 1]] * 2
    assert marks.place.tolist() == [[5, 6, 7]] * 2


@given(st.floats(0.01, 1), st.integers(0, 3000))
def test_the_share_kept_grows_by_at_most_a_position_a_token(ratio: float, tokens: int) -> None:
    kept = kept_tokens(ratio, tokens)
    assert 0 <= kept_tokens(ratio, tokens + 1) - kept <= 1
    assert kept <= tokens
    assert kept >= min(tokens, LEAST_KEPT_TOKENS)
    assert kept < tokens * ratio + 1 or kept == min(tokens, LEAST_KEPT_TOKENS)
    assert kept_tokens(1.0, tokens) == tokens
