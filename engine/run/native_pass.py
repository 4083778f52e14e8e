"""One decoded token of each sequence through all layers natively, of all micro-batches together.

A call runs a layer's norm, attention, sum, norm and router; its experts, and the layers after it,
run in the same call as long as all records are there.
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
from engine.model.trial import TRIAL_FAILURES
from engine.native import library
from engine.native.values import Front
from engine.run.experts_call import ExpertsCall, GateInput
from engine.run.moe_layers import ExpertsRuntime
from engine.run.native_buffers import Buffers
from engine.run.native_linear import use_native_layers
from engine.run.native_router import native_router_of, use_native_routers
from engine.run.native_step import (
    described_step,
    has_native_step,
    use_native_steps,
)

_SEQUENCES, _CONTEXT_TOKENS = 2, 5  # of the trial
_ANGLES = 64  # of positions that are computed at once


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

    def __init__(self, model: Any, layers: Sequence[_Layer], joins: bool) -> None:
        """joins: whether several micro-batches may pass together, since no layer's own MoE block
        runs."""
        base = model.base_model
        self.joins = joins
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
        joins = sum(layer.moe is not None for layer in native) == len(model.layers)
        for layers in (native, own_blocks):
            found = cls(model.model, layers, joins and layers is native)
            if found._sizes() is not None and found._agrees(model):
                return found
        return None

    def logits(
        self,
        tokens: Sequence[torch.Tensor],
        caches: Sequence[Any],
        runtime: ExpertsRuntime | None = None,
    ) -> list[torch.Tensor] | None:
        """Micro-batches [B, 1], whatever they hold so far -> logits [B, 1, V] of each, and their
        keys and values appended. None: the model's own forward has to; nothing has changed.

        runtime: the experts' if no other sequences wait for it: layers follow one another without
        asking it as long as all that they demand is ready. Several micro-batches need it.
        """
        sizes: list[int] = [len(batch) for batch in tokens]
        if any(batch.shape[1] != 1 for batch in tokens) or not self._is_room_for(sizes, caches):
            return None
        if len(sizes) > 1 and (runtime is None or not self.joins):
            return None
        hidden: torch.Tensor = self._embed(_joined(tokens)).contiguous()
        cosine, sine = self._all_angles(hidden, sizes, caches)
        if cosine.dtype != hidden.dtype or cosine.stride(-1) != 1:
            return None
        self._describe(cosine.shape[-1])
        into = self._buffers(caches[0], hidden)
        into.begin(hidden, cosine, sine, caches)
        ready = None
        if runtime is not None and None not in self._routers:
            ready = runtime.ready(into.values.tokens)
        number, count = 0, len(self._layers)
        while number < count:
            if ready is None or runtime is None:
                into.run_front(number)
            else:
                first, number = number, into.run_ready(number, ready)
                index = into.index[first:number].tolist()
                runtime.computed(first, index, into.values.experts_s, sizes)
                if number == count:
                    break
            if len(sizes) > 1 and runtime is not None and self._routers[number] is not None:
                out = self._experts_together(number, into, sizes, runtime)
            else:
                out = self._experts(number, into)
            into.residuals[number % 2].add_(out)
            number += 1
        into.end()
        found: torch.Tensor = self._head(self._norm(into.residuals[(count - 1) % 2]))
        return list(torch.split(found, sizes))

    def _all_angles(
        self, hidden: torch.Tensor, sizes: Sequence[int], caches: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of every sequence's position: [1, 1, d] if it is one for all, else
        [T, 1, d]."""
        positions = [cache.layers[0].get_seq_length() for cache in caches]
        if len(set(positions)) == 1:
            return self._angles(hidden, positions[0])
        if self._turns_alike:
            each = torch.tensor(positions).repeat_interleave(torch.tensor(sizes))
            found: tuple[torch.Tensor, torch.Tensor] = self._rotate(hidden, each[:, None])
            return found
        own = [self._angles(hidden, position) for position in positions]
        cosine, sine = (
            torch.cat([one.expand(n, -1, -1) for one, n in zip(column, sizes, strict=True)])
            for column in zip(*own, strict=True)
        )
        return cosine, sine

    @property
    def _turns_alike(self) -> bool:
        """Whether the angles of a position depend on nothing else."""
        return getattr(self._rotate, "rope_type", None) == "default"

    def _angles(self, hidden: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [1, 1, d] of a position. Where they depend on nothing else, those of the
        next positions are kept with them."""
        if not self._turns_alike:
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

    def _experts(self, number: int, into: Buffers) -> torch.Tensor:
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

    def _experts_together(
        self, number: int, into: Buffers, sizes: list[int], runtime: ExpertsRuntime
    ) -> torch.Tensor:
        """As _experts, for several micro-batches: each is told and routed by itself, as if it had
        come alone."""
        moe, router = self._layers[number].moe, self._routers[number]
        assert moe is not None
        assert router is not None
        _, own_number = port_of(moe.experts)
        hidden, index = into.flat, into.index[number]
        entered = hidden.clone() if runtime.watches_gate else hidden
        runtime.gate_left(own_number, router.output(into.logits, into.weights, index))
        call = ExpertsCall(own_number, hidden, index, into.weights)
        out = runtime.joined(GateInput(sizes, ((entered,), {})), call)
        return out.view(into.normed.shape)

    def _is_room_for(self, sizes: Sequence[int], caches: Sequence[Any]) -> bool:
        """Whether each micro-batch, of these sizes, has a cache that the calls can write to."""
        count = len(self._layers)
        return all(
            cache is not None
            and len(cache.layers) == count
            and all(type(one) is GrowingLayer and one.sequences == size for one in cache.layers)
            for size, cache in zip(sizes, caches, strict=True)
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

    def _buffers(self, cache: Any, hidden: torch.Tensor) -> Buffers:
        """Those of these sequences: each group of sequences has a cache of its own."""
        kept: Buffers | None = cache.__dict__.get("_native_buffers")
        if kept is None or kept.owner is not self or kept.values.tokens != len(hidden):
            router = next((one for one in self._routers if one is not None), None)
            kept = cache.__dict__["_native_buffers"] = Buffers(self, self._fronts, hidden, router)
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
                    found = self.logits([tokens], [caches[1]])
        except TRIAL_FAILURES:
            return False
        states = [[(layer.keys, layer.values) for layer in cache.layers] for cache in caches]
        return _same(([expected], states[0], ports[0].asked), (found, states[1], ports[1].asked))

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


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


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
