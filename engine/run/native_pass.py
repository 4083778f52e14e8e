"""One decoded token of each sequence through all layers with one native call a layer: norm,
attention, sum, norm and router, then the experts.

For models of the usual structure, whose attention decodes in one call (native_step.py). Whether a
model has it is tried: with made-up experts the pass must give the bits of the model's own forward.
Where only routers, or what surrounds the experts, are of another structure, the layers' own MoE
blocks run between the calls.
Letters: B sequences, T = B tokens, D hidden, E experts, K chosen ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from engine.kv_cache.growing_layer import GrowingLayer
from engine.model.hook import answered_by, port_of
from engine.model.loader import LoadedModel, MoeLayer
from engine.model.native_attention import epsilon_of, has_native_norm
from engine.native import library
from engine.native.values import Front
from engine.run.native_router import NativeRouter, native_router_of
from engine.run.native_step import described_step, has_native_step

_SEQUENCES, _CONTEXT_TOKENS = 2, 5  # of the trial
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer. moe: its experts; None for a dense layer, or where its own block runs."""

    module: Any
    moe: MoeLayer | None


@dataclass(frozen=True)
class _Call:
    """How a layer's weights lie. They must not move afterwards."""

    front: Front
    router: NativeRouter | None
    block: Any
    experts: Any


class NativePass:
    """A model's forward pass for one token of each sequence."""

    def __init__(self, model: Any, layers: Sequence[_Layer]) -> None:
        base = model.base_model
        self._embed, self._rotate, self._norm = base.embed_tokens, base.rotary_emb, base.norm
        self._head = model.get_output_embeddings()
        self._layers = layers
        self._calls: list[_Call] = []
        self._made_for = (0, 0)

    @classmethod
    def of(cls, model: LoadedModel) -> NativePass | None:
        """The pass of a model whose attention layers, norms and routers are native; None if it is
        of another structure."""
        base = model.model.base_model
        names = ("embed_tokens", "layers", "norm", "rotary_emb")
        if any(getattr(base, name, None) is None for name in names):
            return None
        if not all(_looks_usual(module) for module in base.layers):
            return None
        of_experts = {id(layer.experts): layer for layer in model.layers}
        whole = [_Layer(m, _moe_inside(m, of_experts)) for m in base.layers]
        own_blocks = [_Layer(module, None) for module in base.layers]
        for layers in (whole, own_blocks):
            found = cls(model.model, layers)
            if found._agrees(model):
                return found
        return None

    def logits(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor | None:
        """tokens [B, 1] -> logits [B, 1, V], and their keys and values appended. None: the model's
        own forward has to; nothing has changed."""
        if tokens.shape[1] != 1 or cache is None or not self._is_room_for(tokens.shape[0], cache):
            return None
        hidden: torch.Tensor = self._embed(tokens).contiguous()
        position = torch.tensor([[cache.layers[0].get_seq_length()]])
        cosine, sine = self._rotate(hidden, position)
        if cosine.dtype != hidden.dtype or not cosine.is_contiguous():
            return None
        calls = self._prepared(cosine.shape[-1])
        front = library.current().front
        turns = (cosine.data_ptr(), sine.data_ptr(), cosine.stride(0) if len(cosine) > 1 else 0)
        place, count = hidden.data_ptr(), len(hidden)
        for call, layer in zip(calls, cache.layers, strict=True):
            into = _buffers_of(cache, hidden, call.router)
            residual, after = into.residual_beside(place)
            keys, values, room, held = layer.make_room()
            front(
                call.front, place, count, *turns, keys, values, room, held, after, *into.addresses
            )
            layer.grown()
            residual.add_(_experts(call, into))
            hidden, place = residual, after
        found: torch.Tensor = self._head(self._norm(hidden))
        return found

    def _is_room_for(self, sequences: int, cache: Any) -> bool:
        layers = cache.layers
        return len(layers) == len(self._layers) and all(
            type(layer) is GrowingLayer and layer.sequences == sequences for layer in layers
        )

    def _prepared(self, rotated: int) -> list[_Call]:
        like = self._layers[0].module.self_attn.q_proj.first_address(), rotated
        if like != self._made_for:
            self._calls = [_call_of(layer, rotated) for layer in self._layers]
            self._made_for = like
        return self._calls

    def _agrees(self, model: LoadedModel) -> bool:
        """Whether the pass gives the bits of the model's own forward, and asks routers and experts
        the same."""
        own = model.model
        generator = torch.Generator().manual_seed(0)
        vocabulary = own.get_input_embeddings().weight.shape[0]
        tokens = torch.randint(vocabulary, (_SEQUENCES, 1), generator=generator)
        try:
            caches = [self._noise_cache(own.config, model.dtype) for _ in range(2)]
            width = own.get_input_embeddings().weight.shape[1]
            ports = [_MadeUp(_SEQUENCES, width, model.dtype) for _ in caches]
            with torch.inference_mode():
                with _answered(model, ports[0]):
                    expected = own(input_ids=tokens, cache=caches[0], use_cache=True).logits
                with _answered(model, ports[1]):
                    found = self.logits(tokens, caches[1])
        except _FAILURES:
            return False
        states = [[(layer.keys, layer.values) for layer in cache.layers] for cache in caches]
        return _same((expected, states[0], ports[0].asked), (found, states[1], ports[1].asked))

    def _noise_cache(self, config: Any, dtype: torch.dtype) -> DynamicCache:
        generator = torch.Generator().manual_seed(0)
        cache = DynamicCache(config=config)
        for number, layer in enumerate(self._layers):
            attention = layer.module.self_attn
            heads = attention.k_proj.out_features // attention.head_dim
            shape = (2, _SEQUENCES, heads, _CONTEXT_TOKENS, attention.head_dim)
            states = torch.randn(*shape, generator=generator).to(dtype)
            cache.layers[number] = GrowingLayer(4 * _CONTEXT_TOKENS)
            cache.layers[number].update(states[0], states[1])
        return cache


def _experts(call: _Call, into: _Buffers) -> torch.Tensor:
    """What a layer's MoE block gives for its input, [B, 1, D]."""
    if call.router is None or into.routed is None:
        out: torch.Tensor = call.block(into.normed)
        return out
    port, number = port_of(call.experts)
    port.gate_entered(number, (into.flat.clone() if port.watches_gate else into.flat,), {})
    logits, weights, index = into.routed
    port.gate_left(number, call.router.output(logits, weights, index))
    return port.experts(number, into.flat, index, weights).view(into.normed.shape)


class _Buffers:
    """Room for what the call of a decoder layer writes, for B sequences; the next layer's call
    writes there again. residuals: two, since a layer reads what the former one wrote."""

    def __init__(self, hidden: torch.Tensor, router: NativeRouter | None) -> None:
        residuals = [torch.empty_like(hidden) for _ in range(2)]
        self._residuals = [(residual, residual.data_ptr()) for residual in residuals]
        self.normed = torch.empty_like(hidden)
        self.flat = self.normed.view(-1, hidden.shape[-1])  # [T, D]
        self.routed = None if router is None else router.buffers(self.flat)
        logits, weights, index = (
            (one.data_ptr() for one in self.routed) if self.routed else (0, 0, 0)
        )
        self.addresses = (self.normed.data_ptr(), logits, weights, index)

    def residual_beside(self, place: int) -> tuple[torch.Tensor, int]:
        """The one that does not lie at this address, and its own."""
        first, second = self._residuals
        return second if first[1] == place else first


def _buffers_of(cache: Any, hidden: torch.Tensor, router: NativeRouter | None) -> _Buffers:
    """The buffers of these sequences: each group of sequences has a cache of its own."""
    key = len(hidden), None if router is None else router.sizes
    kept: dict[Any, _Buffers] = cache.__dict__.setdefault("_native_buffers", {})
    found = kept.get(key)
    if found is None:
        kept = {own: one for own, one in kept.items() if own[0] == key[0]}  # of as many sequences
        found = kept[key] = _Buffers(hidden, router)
        cache.__dict__["_native_buffers"] = kept
    return found


def _looks_usual(module: Any) -> bool:
    attention = getattr(module, "self_attn", None)
    norms = [getattr(module, n, None) for n in ("input_layernorm", "post_attention_layernorm")]
    native = (
        attention is not None and has_native_step(attention) and all(map(has_native_norm, norms))
    )
    return native and isinstance(getattr(module, "mlp", None), nn.Module)


def _moe_inside(module: Any, of_experts: dict[int, MoeLayer]) -> MoeLayer | None:
    """The MoE layer of a decoder layer if its router is native."""
    inside = [of_experts[id(m)] for m in module.mlp.modules() if id(m) in of_experts]
    known = len(inside) == 1 and native_router_of(inside[0].router) is not None
    return inside[0] if known else None


def _call_of(layer: _Layer, rotated: int) -> _Call:
    module = layer.module
    front = Front(step=described_step(module.self_attn, rotated))
    norms = (module.input_layernorm, module.post_attention_layernorm)
    front.input_norm, front.post_norm = (norm.weight.data_ptr() for norm in norms)
    front.input_epsilon, front.post_epsilon = map(epsilon_of, norms)
    router = None if layer.moe is None else native_router_of(layer.moe.router)
    if router is not None:
        front.router = router.values
    return _Call(front, router, module.mlp, None if layer.moe is None else layer.moe.experts)


class _MadeUp:
    """Answers for the experts of all layers, and keeps what it was asked."""

    watches_gate = False

    def __init__(self, tokens: int, width: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        self._answer = torch.randn(tokens, width, generator=generator).to(dtype)
        self.asked: list[Any] = []

    def gate_entered(
        self, layer: int, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        """Called before the router runs."""
        self._keep(layer, *arguments, *keywords.items())

    def gate_left(self, layer: int, output: Any) -> None:
        """Called after it."""
        self._keep(layer, *(output if isinstance(output, tuple) else (output,)))

    def experts(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The answer [T, D]."""
        self._keep(layer, hidden, index, weights)
        return self._answer * (layer + 1)

    def _keep(self, *values: Any) -> None:
        self.asked += [v.clone() if isinstance(v, torch.Tensor) else v for v in values]


def _answered(model: LoadedModel, port: _MadeUp) -> ExitStack:
    """Inside the block all experts and routers are dispatched to `port`."""
    with ExitStack() as opened:
        for layer in model.layers:
            opened.enter_context(answered_by(layer, port))
        return opened.pop_all()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)
