"""Keys and values in numbers: what a token of a layer takes, by bits and place, and how many are
kept. Pure arithmetic."""

from __future__ import annotations

import math

from engine.types import KvBits

BLOCK_TOKENS = 32
"""Tokens that are quantized together; a group of keys."""

VALUE_GROUP = 32
"""Channels of a value that share a scale, or half as many where only that divides."""

WINDOW_TOKENS = 64
"""At least so many of the newest tokens stay at 16 bits; at most a block less one more."""

HOST_GROWTH = 1.5
"""Room on the host grows by this factor, so that it is not copied at every token."""


def packed_ratio(bits: KvBits, width_bytes: int) -> float:
    """Bytes of an older token at these bits over its bytes in the compute dtype, at most.

    Keys have a scale and a zero for each BLOCK_TOKENS, values for each half VALUE_GROUP at worst.
    """
    if bits == 16:
        return 1.0
    return bits / 8 / width_bytes + 1 / BLOCK_TOKENS + 2 / VALUE_GROUP


def window_tokens(bits: KvBits, tokens: int) -> int:
    """How many of so many tokens are at 16 bits at most."""
    return 0 if bits == 16 else min(tokens, WINDOW_TOKENS + BLOCK_TOKENS - 1)


def packed_tokens(bits: KvBits, tokens: int) -> int:
    """How many of so many tokens lie in rows at most."""
    return tokens if bits == 16 else max(0, tokens - WINDOW_TOKENS)


SINK_TOKENS = 4
"""The first positions are never merged or dropped: attention sinks."""

DROP_DISTANCE = 25
"""While decoding, the position so far before the end of the merged prompt is dropped."""

LEAST_KEPT_TOKENS = 2 * SINK_TOKENS
"""No keep_fraction goes below so many positions."""

SCORE_SLICE_BYTES = 1_000_000
"""Attention weights that are made at once to see what each position receives."""

MARK_BYTES = 12
"""What is noted of each kept position beside keys and values."""


def kept_tokens(keep_fraction: float, tokens: int) -> int:
    """How many positions of so many tokens a layer keeps: at most this fraction, rounded up."""
    fraction = math.ceil(tokens * keep_fraction - 1e-9)
    return min(tokens, max(fraction, LEAST_KEPT_TOKENS))


def drop_index(kept: int) -> int:
    """Where a merged prompt of so many positions loses one for each that comes behind it."""
    return max(SINK_TOKENS, kept - DROP_DISTANCE)
