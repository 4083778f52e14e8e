"""Attention of several micro-batches in one forward pass: each over its own keys and values.

Inside `joined` the model's attention modules call a function of ours, which calls the attention
that they had, once for each micro-batch. So their lengths may differ without padding, without a
mask that hides it, and with the bits of each micro-batch's own attention.

Letters: T tokens of all micro-batches, one of each sequence, B of one, Q query heads, H key heads,
N keys, D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from engine.errors import EngineError

NAME = "expertune_joined"  # without a mask function of that name transformers makes no mask
_PORT = "_expertune_joined"


class OwnStates(Protocol):
    """Knows the keys and values of each micro-batch. sizes: how many sequences each has."""

    @property
    def sizes(self) -> Sequence[int]:
        """See above."""

    def each(
        self, key: torch.Tensor, value: torch.Tensor
    ) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values [B, H, N, D] of the micro-batches in their order. key, value: what the
        module attends to, made from what the cache gave it last. Raises StructureError if that is
        not known to be theirs."""


class StructureError(EngineError):
    """The model does something else than what micro-batches can do together."""


class JoinedAttention:
    """The attention modules of a model. model: transformers'; its attention may be any that is
    called through transformers' interface."""

    def __init__(self, model: Any) -> None:
        AttentionInterface.register(NAME, _attend)
        self._modules = [m for m in model.modules() if hasattr(m, "layer_idx")]
        owners = [model, *(m for m in model.modules() if hasattr(m, "config"))]
        self._configs = list({id(owner.config): owner.config for owner in owners}.values())

    @contextmanager
    def joined(self, states: OwnStates) -> Iterator[None]:
        """Inside the block every module attends once for each micro-batch of `states`."""
        former = [config._attn_implementation for config in self._configs]
        names = {id(c): name for c, name in zip(self._configs, former, strict=True)}
        for module in self._modules:
            object.__setattr__(module, _PORT, (states, names))
        for config in self._configs:  # its setter would set those inside it too
            config._attn_implementation_internal = NAME
        try:
            yield
        finally:
            for config, name in zip(self._configs, former, strict=True):
                config._attn_implementation_internal = name
            for module in self._modules:
                module.__dict__.pop(_PORT, None)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """query [T, Q, 1, D] -> [T, 1, Q, D]."""
    if attention_mask is not None or named.get("position_bias") is not None:
        raise StructureError("attention is given a mask or a bias that holds for all sequences")
    states, names = module.__dict__[_PORT]
    attend = _attention_named(names[id(module.config)], module)
    given = {name: each_own(value, states.sizes) for name, value in named.items()}
    found = []
    each = zip(torch.split(query, list(states.sizes)), states.each(key, value), strict=True)
    for number, (own_query, (own_keys, own_values)) in enumerate(each):
        own = {name: values[number] for name, values in given.items()}
        found.append(attend(module, own_query, own_keys, own_values, None, **own)[0])
    return torch.cat(found), None


def each_own(value: Any, sizes: Sequence[int]) -> Sequence[Any]:
    """What each micro-batch of so many rows has of an argument: its rows of a tensor that has one
    for each of all, the whole of anything else, as of a bias of each expert."""
    if not isinstance(value, torch.Tensor) or isinstance(value, nn.Parameter):
        return [value for _ in sizes]
    has_rows = value.dim() >= 2 and len(value) == sum(sizes)
    return torch.split(value, list(sizes)) if has_rows else [value for _ in sizes]


def _attention_named(name: str, module: Any) -> Callable[..., Any]:
    """As transformers' attention modules find it."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if name == "eager" and eager is None:
        raise StructureError("eager attention without a function of that name")
    found: Callable[..., Any] = AttentionInterface().get_interface(name, eager)
    return found
