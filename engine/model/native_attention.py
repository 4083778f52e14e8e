"""Attention and norms of decoding through the native library, on the CPU.

Letters: B sequences, Q query heads, H key heads, L keys, D width. torch's attention of one bf16
query costs a multiple of reading its keys and values (1.8 ms for 550 keys of 16 heads of 128, where
the native one takes 0.1); queries of several tokens stay with it.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from engine.native import library
from engine.native.values import Attention, Number

NAME = "expertune_native"
NUMBERS = {
    torch.float32: Number.FLOAT32,
    torch.bfloat16: Number.BF16,
    torch.float16: Number.FP16,
}
_LEAST_AGREEING = 0.99  # of a norm's rounded values; sums in another order move a few


def use_native_attention(model: Any) -> None:
    """Make a model whose attention is torch's attend natively where one token is decoded, and its
    plain RMS norms run natively."""
    AttentionInterface.register(NAME, attend_native)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    owners = [model, *(m for m in model.modules() if hasattr(m, "config"))]
    for config in {id(owner.config): owner.config for owner in owners}.values():
        if config._attn_implementation == "sdpa":
            config._attn_implementation = NAME
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and _is_plain_norm(module):
            module.forward = types.MethodType(_norm, module)


def attend_native(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' sdpa attention: query [B, Q, S, D], key and value [B, H, L, ..] -> [B, S, Q,
    Dv]."""
    rare = any(named.get(name) is not None for name in ("position_bias", "softcap"))
    if rare or named.get("dropout") or not _is_taken(query, key, value, attention_mask):
        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **named
        )
        return out
    mask = None
    if attention_mask is not None:
        mask = _as_added(attention_mask).expand(query.shape[0], -1).contiguous()  # [B, L]
    scale = named.get("scaling")
    attention = Attention(
        NUMBERS[query.dtype],
        query.shape[0],
        query.shape[1],
        key.shape[1],
        key.shape[2],
        key.shape[3],
        value.shape[3],
        *key.stride()[:3],
        *value.stride()[:3],
        query.shape[3] ** -0.5 if scale is None else scale,
    )
    query = query.contiguous()
    found = query.new_empty(query.shape[0], 1, query.shape[1], value.shape[3])
    library.current().attend(
        attention,
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        found.data_ptr(),
    )
    return found, None


def _is_taken(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> bool:
    same = query.dtype == key.dtype == value.dtype and query.dtype in NUMBERS
    whole = key.stride(3) == 1 and value.stride(3) == 1 and query.shape[1] % key.shape[1] == 0
    alike = mask is None or (mask.dim() == 4 and mask.shape[1:3] == (1, 1))
    fits = mask is None or mask.shape[3] == key.shape[2]
    return query.shape[2] == 1 and same and whole and alike and fits


def _as_added(mask: torch.Tensor) -> torch.Tensor:
    """A mask [B, 1, 1, L] as what is added to scores, float32 [B, L]."""
    flat = mask[:, 0, 0]
    if flat.dtype != torch.bool:
        return flat.float()
    return torch.zeros(flat.shape).masked_fill_(~flat, float("-inf"))


def _norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""
    weight: torch.Tensor = self.weight
    hidden = hidden.contiguous()
    out = torch.empty_like(hidden)
    library.current().norm(
        NUMBERS[hidden.dtype],
        hidden.data_ptr(),
        weight.data_ptr(),
        hidden.numel() // weight.numel(),
        weight.numel(),
        epsilon_of(self),
        out.data_ptr(),
    )
    return out


def epsilon_of(module: Any) -> float:
    """The epsilon of a norm, as families name it."""
    found = getattr(module, "variance_epsilon", None)
    return float(module.eps if found is None else found)


def has_native_norm(module: Any) -> bool:
    """Whether a module is a norm that runs natively."""
    return getattr(getattr(module, "forward", None), "__func__", None) is _norm


def _is_plain_norm(module: nn.Module) -> bool:
    """Whether a norm computes what _norm does, tried on random numbers."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return False
    known = weight.dim() == 1 and weight.dtype in NUMBERS
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not known or not isinstance(epsilon, float) or not weight.is_contiguous():
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.numel(), generator=generator).to(weight.dtype)
    try:
        with torch.inference_mode():
            expected = module(x)
    except (RuntimeError, TypeError):
        return False
    if expected.shape != x.shape or expected.dtype != x.dtype:
        return False
    found = _norm(module, x)
    if weight.dtype == torch.float32:
        return bool(torch.allclose(found, expected, rtol=1e-5, atol=1e-6))
    return float((found == expected).float().mean()) >= _LEAST_AGREEING
