"""Hooks the attention of chosen layers and passes on its queries, keys and mask.

transformers dispatches every attention module by name. While a model is watched its attention name
is one of ours, whose function calls the original attention and then the module's port. As in
hook.py the port is stored on the module, so there is no global state.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from engine.model.native_attention import NAME, attend_native

Attended = tuple[torch.Tensor, torch.Tensor | None]

_PORT = "_expertune_attention"
_WATCHED = {
    "sdpa": "expertune_sdpa",
    "eager": "expertune_eager",
    NAME: "expertune_native_watched",
}


class AttentionPort(Protocol):
    """Called after each attention of the watched layers."""

    def attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        weights: torch.Tensor | None,
    ) -> None:
        """query [B, Q, S, D], key [B, H, N, D], mask [B, 1, S, N] or None (causal); weights [B,
        Q, S, N] if this attention computed them."""


def watch_attention(model: Any, layers: Collection[int], port: AttentionPort) -> Callable[[], None]:
    """Notify `port` of the attention of these layers. Returns a function that undoes it."""
    AttentionInterface.register(_WATCHED["sdpa"], _watched(sdpa_attention_forward))
    AttentionInterface.register(_WATCHED["eager"], _attend_eager)
    AttentionInterface.register(_WATCHED[NAME], _watched(attend_native))
    AttentionMaskInterface.register(_WATCHED["sdpa"], sdpa_mask)
    AttentionMaskInterface.register(_WATCHED[NAME], sdpa_mask)
    AttentionMaskInterface.register(_WATCHED["eager"], eager_mask)
    modules = [m for m in model.modules() if getattr(m, "layer_idx", None) in layers]
    for module in modules:
        object.__setattr__(module, _PORT, port)
    owners = [model, *(m for m in model.modules() if hasattr(m, "config"))]
    configs = {id(owner.config): owner.config for owner in owners}
    built = [(config, config._attn_implementation) for config in configs.values()]
    for config, name in built:
        config._attn_implementation = _WATCHED.get(name, name)

    def undo() -> None:
        for config, name in built:
            config._attn_implementation = name
        for module in modules:
            module.__dict__.pop(_PORT, None)

    return undo


def _watched(attend: Callable[..., Attended]) -> Callable[..., Attended]:
    """This attention, which computes no weights of its own, with the port notified after it."""

    def run(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **named: Any,
    ) -> Attended:
        out = attend(module, query, key, value, attention_mask, **named)
        _notify(module, query, key, attention_mask, named, None)
        return out

    return run


def _attend_eager(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    own = sys.modules[type(module).__module__].eager_attention_forward
    out: tuple[torch.Tensor, torch.Tensor] = own(module, query, key, value, attention_mask, **named)
    _notify(module, query, key, attention_mask, named, out[1])
    return out


def _notify(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    named: dict[str, Any],
    weights: torch.Tensor | None,
) -> None:
    port: AttentionPort | None = module.__dict__.get(_PORT)
    if port is not None:
        port.attended(query, key, mask, named.get("scaling"), weights)
