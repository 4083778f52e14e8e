"""One decoded token of each sequence through all layers natively.

A call runs a layer's norm, attention, sum, norm and router; its experts, and the layers after it,
run in the same call as long as all records are there.
For models of the usual structure, whose attention decodes in one call (native_step.py). Whether a
model has it is tried: with made-up experts the pass must give the bits of the model's own forward.
Where only routers, or what surrounds the experts, are of another structure, the layers' own MoE
blocks run between the calls.
Letters: B sequences, T = B tokens, D hidden, E experts, K chosen ones, V vocabulary.
"""

from __future__ import annotations

import ctypes
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
from engine.native.values import Front, Layers, Store
from engine.run.moe_layers import ExpertsRuntime, Ready
from engine.run.native_linear import use_native_layers
from engine.run.native_router import NativeRouter, native_router_of, use_native_routers
from engine.run.native_step import described_step, has_native_step, use_native_steps

_SEQUENCES, _CONTEXT_TOKENS = 2, 5  # of the trial
_ANGLES = 64  # of positions that are computed at once
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer. moe: its experts; None for a dense layer, or where its own block runs."""

    module: Any
    moe: MoeLayer | None


def use_native(model: LoadedModel, most_tokens: int) -> NativePass | None:
    """Make a model on the CPU use the native library, if there is one: linear layers and routers up
    to this many tokens, norms, attention where one token is decoded. Returns its pass if it has
    one."""
    if not library.is_available():
        return None
    use_native_layers(model.model, most_tokens)
    use_native_routers((layer.router for layer in model.layers), most_tokens)
    use_native_steps(model.model)
    return NativePass.of(model)


class NativePass:
    """A model's forward pass for one token of each sequence."""

    def __init__(self, model: Any, layers: Sequence[_Layer]) -> None:
        base = model.base_model
        self._embed, self._rotate, self._norm = base.embed_tokens, base.rotary_emb, base.norm
        self._head = model.get_output_embeddings()
        self._layers = layers
        self._routers = [
            None if one.moe is None else native_router_of(one.moe.router) for one in layers
        ]
        self._fronts = (Front * len(layers))()
        self._made_for = (0, 0)
        nothing = torch.empty(1, 0, 0)
        self._kept_angles = 0, nothing, nothing  # position of the first, [1, n, d]

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
        native = [_Layer(module, _moe_inside(module, of_experts)) for module in base.layers]
        own_blocks = [_Layer(module, None) for module in base.layers]
        for layers in (native, own_blocks):
            found = cls(model.model, layers)
            if found._sizes() is not None and found._agrees(model):
                return found
        return None

    def logits(
        self, tokens: torch.Tensor, cache: Any, alone: ExpertsRuntime | None = None
    ) -> torch.Tensor | None:
        """tokens [B, 1] -> logits [B, 1, V], and their keys and values appended. None: the model's
        own forward has to; nothing has changed.

        alone: the experts' runtime if no other sequences wait for it: layers follow one another
        without asking it as long as all that they demand is ready.
        """
        if tokens.shape[1] != 1 or cache is None or not self._is_room_for(tokens.shape[0], cache):
            return None
        hidden: torch.Tensor = self._embed(tokens).contiguous()
        cosine, sine = self._angles(hidden, cache.layers[0].get_seq_length())
        if cosine.dtype != hidden.dtype or cosine.stride(-1) != 1:
            return None
        self._describe(cosine.shape[-1])
        into = self._buffers(cache, hidden)
        into.begin(hidden, cosine, sine, cache.layers)
        ready = None
        if alone is not None and None not in self._routers:
            ready = alone.ready(into.values.tokens)
        number, count = 0, len(self._layers)
        while number < count:
            if ready is None or alone is None:
                into.run_front(number)
            else:
                first, number = number, into.run_ready(number, ready)
                alone.computed(first, into.index[first:number].tolist(), into.values.experts_s)
                if number == count:
                    break
            into.residuals[number % 2].add_(self._experts(number, into))
            number += 1
        found: torch.Tensor = self._head(self._norm(into.residuals[(count - 1) % 2]))
        return found

    def _angles(self, hidden: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [1, 1, d] of a position. Where they depend on nothing else, those of the
        next positions are kept with them."""
        if getattr(self._rotate, "rope_type", None) != "default":
            found: tuple[torch.Tensor, torch.Tensor] = self._rotate(
                hidden, torch.tensor([[position]])
            )
            return found
        first, cosines, sines = self._kept_angles
        if not first <= position < first + cosines.shape[1] or cosines.dtype != hidden.dtype:
            positions = torch.arange(position, position + _ANGLES)[None]
            cosines, sines = self._rotate(hidden, positions)
            self._kept_angles, first = (position, cosines, sines), position
        at = position - first
        return cosines.narrow(1, at, 1), sines.narrow(1, at, 1)

    def _experts(self, number: int, into: _Buffers) -> torch.Tensor:
        """What a layer's MoE block gives for its input, [B, 1, D]."""
        layer, router = self._layers[number], self._routers[number]
        if layer.moe is None or router is None:
            out: torch.Tensor = layer.module.mlp(into.normed)
            return out
        port, own_number = port_of(layer.moe.experts)
        hidden, index = into.flat, into.index[number]
        port.gate_entered(own_number, (hidden.clone() if port.watches_gate else hidden,), {})
        port.gate_left(own_number, router.output(into.logits, into.weights, index))
        return port.experts(own_number, hidden, index, into.weights).view(into.normed.shape)

    def _is_room_for(self, sequences: int, cache: Any) -> bool:
        layers = cache.layers
        return len(layers) == len(self._layers) and all(
            type(layer) is GrowingLayer and layer.sequences == sequences for layer in layers
        )

    def _describe(self, rotated: int) -> None:
        """Describe how all weights lie, if they have moved since."""
        like = self._layers[0].module.self_attn.q_proj.first_address(), rotated
        if like == self._made_for:
            return
        for number, layer in enumerate(self._layers):
            module, front = layer.module, self._fronts[number]
            front.step = described_step(module.self_attn, rotated)
            norms = (module.input_layernorm, module.post_attention_layernorm)
            front.input_norm, front.post_norm = (norm.weight.data_ptr() for norm in norms)
            front.input_epsilon, front.post_epsilon = map(epsilon_of, norms)
            router = self._routers[number]
            if router is not None:
                front.router = router.values
        self._made_for = like

    def _sizes(self) -> tuple[int, int, int] | None:
        """E, K and the type of weights of all native routers, zeros if there are none; None if they
        differ."""
        sizes = {router.sizes for router in self._routers if router is not None} or {(0, 0, 0)}
        return sizes.pop() if len(sizes) == 1 else None

    def _buffers(self, cache: Any, hidden: torch.Tensor) -> _Buffers:
        """Those of these sequences: each group of sequences has a cache of its own."""
        kept: _Buffers | None = cache.__dict__.get("_native_buffers")
        if kept is None or kept.owner is not self or kept.values.tokens != len(hidden):
            router = next((one for one in self._routers if one is not None), None)
            kept = cache.__dict__["_native_buffers"] = _Buffers(self, self._fronts, hidden, router)
        return kept

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


class _Buffers:
    """Room for what the calls of layers write, for B sequences.

    residuals: of layers with even and with odd numbers, [B, 1, D], since a layer reads what the
    former one wrote; normed, flat: what the router and the experts of the present layer read,
    [B, 1, D] and [T, D]; logits [T, E] and weights [T, K]: of its router; index: of all layers,
    [L, T, K].
    """

    def __init__(
        self,
        owner: NativePass,
        fronts: ctypes.Array[Front],
        hidden: torch.Tensor,
        router: NativeRouter | None,
    ) -> None:
        self.owner = owner
        count = len(fronts)
        self.residuals = torch.empty_like(hidden), torch.empty_like(hidden)
        self.normed = torch.empty_like(hidden)
        self.flat = self.normed.view(-1, hidden.shape[-1])
        nothing = hidden.new_empty(0)
        buffers = (nothing, nothing, nothing) if router is None else router.buffers(self.flat)
        self.logits, self.weights, index = buffers
        self.index = index.new_empty(count, *index.shape)
        self._stores = (Store * count)()
        self.values = Layers(
            count=count,
            tokens=len(hidden),
            fronts=ctypes.addressof(fronts),
            stores=ctypes.addressof(self._stores),
            normed=self.normed.data_ptr(),
            logits=self.logits.data_ptr(),
            weights=self.weights.data_ptr(),
            index=self.index.data_ptr(),
        )
        self.values.residuals[:] = [residual.data_ptr() for residual in self.residuals]
        self._held: tuple[Any, ...] = ()
        self._layers: Sequence[GrowingLayer] = ()

    def begin(
        self,
        hidden: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        layers: Sequence[GrowingLayer],
    ) -> None:
        """A pass begins: hidden [B, 1, D], cosine and sine [B or 1, 1, d]."""
        self._held, self._layers = (hidden, cosine, sine), layers
        values = self.values
        values.x, values.cosine, values.sine = (held.data_ptr() for held in self._held)
        values.stride = cosine.stride(0) if len(cosine) > 1 else 0
        for store, layer in zip(self._stores, layers, strict=True):
            store.keys, store.values, store.room, values.position = layer.make_room()

    def run_front(self, number: int) -> None:
        """Run a layer up to its router."""
        self.values.records = 0
        self._run(number)

    def run_ready(self, first: int, ready: Ready) -> int:
        """Run layers from `first` on. Returns the layer that lacks a record; its router has run."""
        values = self.values
        values.experts, values.experts_s = ctypes.addressof(ready.experts), 0.0
        values.records, values.experts_of_layer = ready.records.place, ready.records.experts
        return self._run(first)

    def _run(self, first: int) -> int:
        values = self.values
        values.first = first
        if first != 0:
            values.x = values.residuals[(first - 1) % 2]
        reached = library.current().layers(values)
        for layer in self._layers[first : reached + 1]:
            layer.grown()
        return reached


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
