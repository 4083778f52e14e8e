"""What a model's kv_cache holds, from a forward pass without numbers.

Families keep keys and values of every token, of a window, compressed ones (latent attention), or a
state of one size. The model on the meta device is run on a few tokens, and its cache is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from engine.model.trial import TRIAL_FAILURES

_TOKENS = (2, 3)
_STATE_WIDTH = 4  # bytes: recurrent states are kept in float32


@dataclass(frozen=True)
class KvLayer:
    """What a layer holds of one sequence.

    token_elements: numbers of each token; window: of the newest tokens only, 0: of all; plain: in
    transformers' plain layer; state_elements: numbers whatever the length.
    """

    token_elements: int = 0
    window: int = 0
    plain: bool = False
    state_elements: int = 0

    @property
    def state_bytes(self) -> int:
        """At most."""
        return self.state_elements * _STATE_WIDTH


def kv_layers(model: Any, experts: Sequence[nn.Module]) -> tuple[KvLayer, ...]:
    """The layers of a model on the meta device, whose experts give nothing here. Empty if that is
    not found out: the family brings its own kind of cache, or runs only with numbers."""
    try:
        with torch.inference_mode(), _without(experts):
            short, long = ([_look(one) for one in _run(model, tokens)] for tokens in _TOKENS)
        return tuple(map(_grown, short, long))
    except TRIAL_FAILURES:
        return ()


def _run(model: Any, tokens: int) -> Iterable[Any]:
    """The cache's layers after so many tokens."""
    cache = DynamicCache(config=model.config)
    given = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    model(input_ids=given, cache=cache, use_cache=True, logits_to_keep=1)
    return list(cache.layers)


def _look(layer: Any) -> KvLayer:
    states = [getattr(layer, name, None) for name in ("keys", "values")]
    tokens = [one for one in states if isinstance(one, torch.Tensor)]
    if any(one.dim() != 4 for one in tokens):
        raise TypeError("keys and values without heads")
    elements = sum(one.numel() // one.shape[2] for one in tokens)
    rest = [one for name, one in vars(layer).items() if name not in ("keys", "values")]
    window = int(layer.sliding_window) if getattr(layer, "is_sliding", False) else 0
    return KvLayer(elements, window, type(layer) is DynamicLayer, sum(map(_floats, rest)))


def _grown(short: KvLayer, long: KvLayer) -> KvLayer:
    """What a layer holds, of what it held after one token more: an index of keys grows too."""
    more = (long.state_elements - short.state_elements) // (_TOKENS[1] - _TOKENS[0])
    state = short.state_elements - more * _TOKENS[0]
    if more < 0 or state < 0 or long.token_elements != short.token_elements:
        raise ValueError("a cache that shrinks")
    return replace(short, token_elements=short.token_elements + more, state_elements=state)


def _floats(value: Any) -> int:
    """Floating point numbers in a tensor, or in those of a container."""
    if isinstance(value, torch.Tensor):
        return value.numel() if value.is_floating_point() else 0
    if isinstance(value, dict):
        return sum(map(_floats, value.values()))
    return sum(map(_floats, value)) if isinstance(value, (list, tuple)) else 0


@contextmanager
def _without(experts: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block experts give zeros."""

    def nothing(hidden: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        return torch.zeros_like(hidden)

    for module in experts:
        module.__dict__["forward"] = nothing
    try:
        yield
    finally:
        for module in experts:
            del module.__dict__["forward"]
