"""Merges unimportant cached positions into important ones (Elastic Cache, arXiv 2407.18121).

Letters: B sequences, Q query heads, H key heads, S new tokens, N positions, M of them kept, D head
width. Keys and values may differ in H and D (latent attention).

As in the paper, one choice serves all heads of a layer: a position's importance is the attention
that it received, summed over queries and averaged over heads. The authors' code compares
argsort(importance), which are indices, with a count, as if they were ranks; here they are ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.layout.kv import SCORE_SLICE_BYTES, SINK_TOKENS


class Marks(NamedTuple):
    """State of each position, [B, N] each, float32.

    importance: attention received so far; tokens: how many it stands for; place: the position of
    its own token in the text.
    """

    importance: torch.Tensor
    tokens: torch.Tensor
    place: torch.Tensor


class Merged(NamedTuple):
    """keys, values [B, H, M, D], marks [B, M]."""

    keys: torch.Tensor
    values: torch.Tensor
    marks: Marks


def new_marks(batch: int, first: int, count: int, device: torch.device) -> Marks:
    """Marks of tokens that were just appended, from place `first` on, [B, count]."""
    nothing = torch.zeros(batch, count, device=device)
    places = torch.arange(first, first + count, device=device, dtype=torch.float32)
    return Marks(nothing, nothing + 1, places.expand(batch, count))


def received_attention(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention that each position receives: summed over queries, averaged over heads, [B, N].

    query [B, Q, S, D] of the newest tokens, key [B, H, N, D]; mask [B, 1, S, N], True or 0 where
    attention is allowed; None: causal.
    """
    batch, heads, new, width = query.shape
    total = key.shape[2]
    grouped = query.view(batch, key.shape[1], -1, new, width)  # [B, H, Q/H, S, D]
    keys = key.transpose(2, 3).unsqueeze(2)  # [B, H, 1, D, N]
    found = torch.zeros(batch, total, device=query.device)
    rows = max(1, SCORE_SLICE_BYTES // (4 * batch * heads * total))
    for start in range(0, new, rows):
        piece = grouped[..., start : start + rows, :]
        scores = torch.matmul(piece, keys).float()  # [B, H, Q/H, s, N]
        scores *= width**-0.5 if scaling is None else scaling
        _hide(scores, mask, start, total - new)
        found += scores.softmax(dim=-1).sum(dim=(1, 2, 3))  # [B, N]
    return found / heads


def merge(keys: torch.Tensor, values: torch.Tensor, marks: Marks, keep: int) -> Merged:
    """Keep `keep` positions: the first SINK_TOKENS, the last and the most important others.

    Every other one is averaged into the nearest kept one that is neither sink nor last. keys,
    values [B, H, N, D], SINK_TOKENS + 1 < keep < N. A position that stands for several tokens
    weighs as many; of two equally near the earlier is taken.
    """
    kept = kept_positions(marks.importance, keep)  # [B, M]
    places = marks.place.gather(1, kept)  # [B, M]
    slots = _nearest(marks.place, places)  # [B, N]
    slots.scatter_(1, kept, torch.arange(keep, device=kept.device).expand_as(kept))
    counts = torch.zeros_like(places).scatter_add_(1, slots, marks.tokens)  # [B, M]
    merged = Marks(marks.importance.gather(1, kept), counts, places)
    averages = [_averages(states, slots, marks.tokens, counts) for states in (keys, values)]
    return Merged(averages[0], averages[1], merged)


def kept_positions(importance: torch.Tensor, keep: int) -> torch.Tensor:
    """The positions to keep, [B, M] in order. importance: [B, N]."""
    batch, total = importance.shape
    middle = importance[:, SINK_TOKENS : total - 1]
    best = middle.topk(keep - SINK_TOKENS - 1, dim=1).indices + SINK_TOKENS
    sinks = torch.arange(SINK_TOKENS, device=best.device).expand(batch, -1)
    last = torch.full((batch, 1), total - 1, device=best.device)
    return torch.cat((sinks, best.sort(dim=1).values, last), dim=1)


def _hide(scores: torch.Tensor, mask: torch.Tensor | None, start: int, before: int) -> None:
    """Mask scores [B, H, Q/H, s, N] of the queries from `start` on, in place."""
    rows, total = scores.shape[-2:]
    if mask is None:
        last = torch.arange(start, start + rows, device=scores.device)[:, None] + before
        scores.masked_fill_(torch.arange(total, device=scores.device) > last, -torch.inf)
        return
    piece = mask[:, :, start : start + rows, :total].unsqueeze(2)  # [B, 1, 1, s, N]
    if piece.dtype == torch.bool:
        scores.masked_fill_(~piece, -torch.inf)
    else:
        scores += piece


def _nearest(places: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """For each place [B, N] the slot of the nearest kept one [B, M] that others may merge into."""
    anchors = kept[:, SINK_TOKENS:-1].contiguous()
    after = torch.searchsorted(anchors, places.contiguous())
    right = after.clamp(max=anchors.shape[1] - 1)
    left = (after - 1).clamp(min=0)
    nearer = places - anchors.gather(1, left) <= anchors.gather(1, right) - places
    nearer &= after > 0
    return torch.where(nearer, left, right) + SINK_TOKENS


def _averages(
    states: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, sums: torch.Tensor
) -> torch.Tensor:
    """states [B, H, N, D] averaged over the positions of each slot, [B, H, M, D]."""
    batch, heads, _, width = states.shape
    weighted = states.float() * weights[:, None, :, None]
    index = slots[:, None, :, None].expand_as(weighted)
    total = weighted.new_zeros(batch, heads, sums.shape[1], width)
    total.scatter_add_(2, index, weighted)  # [B, H, M, D]
    return total.div_(sums[:, None, :, None]).to(states.dtype)
