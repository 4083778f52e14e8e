"""What comes before the experts of a decoder layer in one native call, where one token of each
sequence is decoded: norm, attention, sum, norm, router.

For layers of the usual structure whose attention decodes in one call (native_step.py). Whether a
layer has it is tried: with the answers of made-up experts the call must give the bits of its own
forward. Where only the router or what surrounds the experts is of another structure, the layer's
own MoE block runs on the call's result.
Letters: B sequences, T = B tokens, D hidden, E experts, K chosen ones.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch

from engine.kv_cache.growing_layer import GrowingLayer
from engine.model.hook import answered_by, port_of
from engine.model.loader import LoadedModel, MoeLayer
from engine.model.native_attention import epsilon_of, has_native_norm
from engine.native import library
from engine.native.values import Front
from engine.run.native_router import NativeRouter, native_router_of
from engine.run.native_step import (
    described_step,
    has_native_step,
    step_layer,
    tried_caches,
    use_native_attention_steps,
)

_OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits")
_KEPT = ("keys", "values")
_MOST_BUFFERS = 4  # by number of sequences and kind of layer


@dataclass(frozen=True)
class _Parts:
    """A decoder layer's parts. moe: its experts, None for a dense layer or where the MoE block
    runs itself."""

    attention: Any
    block: Any
    moe: MoeLayer | None


def use_native_steps(model: LoadedModel) -> None:
    """Make the attention layers of a model that has native linear layers decode in one call, and
    decoder layers that it suits decode up to their experts in one."""
    use_native_attention_steps(model.model)
    of_experts = {id(layer.experts): layer for layer in model.layers}
    for module in model.model.modules():
        attention = getattr(module, "self_attn", None)
        if attention is None or not has_native_step(attention) or not _looks_usual(module):
            continue
        inside = [of_experts[id(m)] for m in module.mlp.modules() if id(m) in of_experts]
        moe = inside[0] if len(inside) == 1 else None
        whole = _Parts(attention, module.mlp, moe)
        partly = _Parts(attention, module.mlp, None)
        for parts in [whole, partly] if moe is not None else [partly]:
            if _agrees(module, parts, moe):
                object.__setattr__(module, "_native_parts", parts)
                object.__setattr__(module, "_whole_forward", module.forward)
                module.forward = types.MethodType(_forward, module)
                break


def _looks_usual(module: Any) -> bool:
    norms = [getattr(module, n, None) for n in ("input_layernorm", "post_attention_layernorm")]
    return all(has_native_norm(norm) for norm in norms) and getattr(module, "mlp", None) is not None


def _forward(
    self: Any,
    hidden_states: torch.Tensor,
    *positional: Any,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: Any = None,
    cache: Any = None,
    **rest: Any,
) -> Any:
    """As the module's own forward."""
    parts: _Parts = self._native_parts
    if not positional and attention_mask is None and not any(rest.get(n) for n in _OUTPUTS):
        if step_layer(parts.attention, hidden_states, position_embeddings, cache) is not None:
            return _run(self, parts, hidden_states, position_embeddings, cache)
    return self._whole_forward(
        hidden_states,
        *positional,
        attention_mask=attention_mask,
        position_embeddings=position_embeddings,
        cache=cache,
        **rest,
    )


def _run(
    module: Any, parts: _Parts, hidden: torch.Tensor, embeddings: Any, cache: Any
) -> torch.Tensor:
    """hidden [B, 1, D] -> [B, 1, D], which lies in the cache's buffers until the layer after the
    next one."""
    front, router = _front(module, parts)
    layer: GrowingLayer = cache.layers[parts.attention.layer_idx]
    cosine, sine = embeddings
    hidden = hidden.contiguous()
    into = _buffers_of(cache, hidden, router)
    residual, residual_address = into.residual_beside(hidden)
    library.current().front(
        front,
        hidden.data_ptr(),
        hidden.shape[0],
        cosine.data_ptr(),
        sine.data_ptr(),
        cosine.stride(0) if cosine.shape[0] > 1 else 0,
        *layer.make_room(),
        residual_address,
        *into.addresses,
    )
    layer.grown()
    if router is None or parts.moe is None:
        inner: torch.Tensor = parts.block(into.normed)
        return residual.add_(inner)
    port, number = port_of(parts.moe.experts)
    port.gate_entered(number, (into.flat.clone() if port.watches_gate else into.flat,), {})
    logits, weights, index = into.routed
    port.gate_left(number, router.output(logits, weights, index))
    out = port.experts(number, into.flat, index, weights)  # [T, D]
    return residual.add_(out.view(residual.shape))


class _Buffers:
    """Room for what the call of a decoder layer writes, for B sequences; the next layer's call
    writes there again. residuals: two, since a layer reads what the former one wrote."""

    def __init__(self, hidden: torch.Tensor, router: NativeRouter | None) -> None:
        residuals = [torch.empty_like(hidden) for _ in range(2)]
        self._residuals = [(residual, residual.data_ptr()) for residual in residuals]
        self.normed = torch.empty_like(hidden)
        self.flat = self.normed.view(-1, hidden.shape[-1])  # [T, D]
        self.routed = () if router is None else router.buffers(self.flat)
        places = [buffer.data_ptr() for buffer in self.routed] or [0, 0, 0]
        self.addresses = (self.normed.data_ptr(), *places)

    def residual_beside(self, hidden: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The one that `hidden` does not lie in, and its address."""
        first = self._residuals[0]
        return self._residuals[1] if first[1] == hidden.data_ptr() else first


def _buffers_of(cache: Any, hidden: torch.Tensor, router: NativeRouter | None) -> _Buffers:
    """The buffers of these sequences: each group of sequences has a cache of its own."""
    kept: dict[Any, _Buffers] = cache.__dict__.setdefault("_native_buffers", {})
    key = hidden.shape[0], None if router is None else router.sizes
    found = kept.get(key)
    if found is None:
        if len(kept) == _MOST_BUFFERS:
            kept.clear()
        found = kept[key] = _Buffers(hidden, router)
    return found


def _front(module: Any, parts: _Parts) -> tuple[Front, NativeRouter | None]:
    """How the layer's weights lie; made again when they have moved."""
    router = None if parts.moe is None else native_router_of(parts.moe.router)
    place = parts.attention.q_proj.first_address(), router
    known = module.__dict__.get("_native_front")
    if known is not None and known[0] == place:
        return known[1], router
    front = Front(step=described_step(parts.attention))
    norms = (module.input_layernorm, module.post_attention_layernorm)
    front.input_norm, front.post_norm = (norm.weight.data_ptr() for norm in norms)
    front.input_epsilon, front.post_epsilon = map(epsilon_of, norms)
    if router is not None:
        front.router = router.values
    object.__setattr__(module, "_native_front", (place, front))
    return front, router


class _MadeUp:
    """Answers for the experts of a layer, and keeps what it was asked."""

    watches_gate = False

    def __init__(self, answer: torch.Tensor) -> None:
        self._answer = answer
        self.asked: list[Any] = []

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Called before the router runs."""
        self.asked += [layer, *arguments, *keywords.items()]

    def gate_left(self, layer: int, output: Any) -> None:
        """Called after it."""
        self.asked += [layer, *(output if isinstance(output, tuple) else (output,))]

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The answer [T, D]."""
        self.asked += [layer, hidden.clone(), index, weights]
        return self._answer.clone()


def _agrees(module: Any, parts: _Parts, moe: MoeLayer | None) -> bool:
    """Whether the native call, and the experts' answer added to it, give the bits of the layer's
    own forward, and ask routers and experts the same."""
    if parts.moe is not None and native_router_of(parts.moe.router) is None:
        return False
    hidden, embeddings, caches = tried_caches(parts.attention)
    if caches is None:
        return False
    generator = torch.Generator().manual_seed(1)
    answer = torch.randn(hidden.shape[0], hidden.shape[2], generator=generator).to(hidden.dtype)
    ports = [_MadeUp(answer), _MadeUp(answer)]
    layers = [cache.layers[parts.attention.layer_idx] for cache in caches]
    try:
        with torch.inference_mode():
            with answered_by(moe, ports[0]):
                expected = module(
                    hidden,
                    position_embeddings=embeddings,
                    attention_mask=None,
                    position_ids=torch.zeros(hidden.shape[0], 1, dtype=torch.int64),
                    cache=caches[0],
                    use_cache=True,
                )
            with answered_by(moe, ports[1]):
                found = _run(module, parts, hidden, embeddings, caches[1])
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    pairs = [(expected, found), *((getattr(layers[0], n), getattr(layers[1], n)) for n in _KEPT)]
    return all(_same(a, b) for a, b in [*pairs, (ports[0].asked, ports[1].asked)])


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)
