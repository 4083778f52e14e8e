"""The prefix cache: keys and values of prefixes that prompts share, computed once.

Inspired by Ca2-VDM (arXiv 2411.16375), which computes the keys and values of conditioning frames
once for all frames generated after them. A system prompt, or a growing conversation, is read only
after its cached prefix. Constant in size: a fixed number of tokens of keys and values, and the last
prompts for comparison.

Letters: H heads, S tokens, D head width.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

LEAST_TOKENS = 16  # a shorter prefix is not worth a copy
REMEMBERED = 64  # prompts to find common prefixes with

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prompt's first tokens in each layer, [1, H, S, D]."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class Prefixes:
    """Caches prefixes that at least two prompts share.

    config: of transformers' model; capacity_tokens: tokens of all cached prefixes together. For
    models whose every layer keeps plain keys and values.
    """

    def __init__(self, config: Any, capacity_tokens: int) -> None:
        self._config = config
        self._capacity = capacity_tokens
        self._kept: OrderedDict[Tokens, Prefix] = OrderedDict()  # the least lately used first
        self._seen: deque[Tokens] = deque(maxlen=REMEMBERED)

    @property
    def tokens(self) -> int:
        """Number of cached tokens."""
        return sum(map(len, self._kept))

    def start(self, prompt: Tokens) -> tuple[Any, int]:
        """A kv_cache that holds the longest cached prefix of a prompt, and its number of tokens;
        (None, 0) if there is none. At least the last token is left to read, for its logits."""
        best, shared = None, LEAST_TOKENS - 1
        for tokens in self._kept:
            length = common_tokens(tokens, prompt[:-1])
            if length > shared:
                best, shared = tokens, length
        if best is None:
            return None, 0
        self._kept.move_to_end(best)
        cache = DynamicCache(config=self._config)
        for number, (keys, values) in enumerate(self._kept[best].layers):
            cache.update(keys[:, :, :shared], values[:, :, :shared], number)  # copies
        return cache, shared

    def note(self, prompt: Tokens, cache: Any) -> None:
        """Cache the prefix that a prompt shares with an earlier one. cache: the kv_cache after
        the prompt."""
        shared = max((common_tokens(prompt, other) for other in self._seen), default=0)
        self._seen.append(prompt)
        shared = min(shared, self._capacity)
        known = max((common_tokens(prompt, tokens) for tokens in self._kept), default=0)
        if shared < LEAST_TOKENS or shared <= known:
            return
        prefix = prompt[:shared]
        for shorter in [one for one in self._kept if prefix[: len(one)] == one]:
            del self._kept[shorter]
        while self.tokens + shared > self._capacity:
            self._kept.popitem(last=False)
        self._kept[prefix] = Prefix(
            tuple(
                (layer.keys[:, :, :shared].clone(), layer.values[:, :, :shared].clone())
                for layer in cache.layers
            )
        )

    def clear(self) -> None:
        """Drop all prefixes and prompts."""
        self._kept.clear()
        self._seen.clear()


def common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    length = min(len(first), len(second))
    for place in range(length):
        if first[place] != second[place]:
            return place
    return length
