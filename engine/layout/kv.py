"""Sizes of keys and values: bytes of a token of a layer, by bits and place, and tokens kept.

Pure arithmetic.
"""

from __future__ import annotations

import math

from engine.types import KvBits

BLOCK_TOKENS = 32
"""Tokens that are quantized together; a group of keys."""

VALUE_GROUP = 32
"""Channels of a value that share a scale, or half as many if only that divides."""

WINDOW_TOKENS = 64
"""At least this many of the newest tokens stay at 16 bits; at most a block less one more."""

HOST_GROWTH = 1.5
"""Capacity on the host grows by this factor, so that it is not copied at every token."""


def packed_ratio(bits: KvBits, width_bytes: int) -> float:
    """Upper bound of the bytes of an older token at these bits over its bytes in the compute dtype.

    Keys have a scale and a zero for each BLOCK_TOKENS, values for each half VALUE_GROUP at worst.
    """
    if bits == 16:
        return 1.0
    return bits / 8 / width_bytes + 1 / BLOCK_TOKENS + 2 / VALUE_GROUP


def window_tokens(bits: KvBits, tokens: int) -> int:
    """The most of this many tokens that are at 16 bits."""
    return 0 if bits == 16 else min(tokens, WINDOW_TOKENS + BLOCK_TOKENS - 1)


def packed_tokens(bits: KvBits, tokens: int) -> int:
    """The most of this many tokens that lie in rows."""
    return tokens if bits == 16 else max(0, tokens - WINDOW_TOKENS)


SINK_TOKENS = 4
"""The first positions are never merged or dropped: attention sinks."""

DROP_DISTANCE = 25
"""While decoding, the position this far before the end of the merged prompt is dropped."""

LEAST_KEPT_TOKENS = 2 * SINK_TOKENS
"""No keep_fraction keeps fewer positions than this."""

SCORE_SLICE_BYTES = 1_000_000
"""Bytes of attention weights computed at once to find what each position receives."""

MARK_BYTES = 12
"""Bytes of marks of each kept position besides keys and values."""


def kept_tokens(keep_fraction: float, tokens: int) -> int:
    """Positions that a layer keeps of this many tokens: at most this fraction, rounded up."""
    fraction = math.ceil(tokens * keep_fraction - 1e-9)
    return min(tokens, max(fraction, LEAST_KEPT_TOKENS))


def drop_index(kept: int) -> int:
    """The index at which a merged prompt of `kept` positions loses one for each later token."""
    return max(SINK_TOKENS, kept - DROP_DISTANCE)
