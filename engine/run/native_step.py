"""A whole attention layer in one native call where one token of each sequence is decoded.

For modules of the usual structure: projections, norms over a head or over all heads, rotation of
the halves of a head or of its first columns, plain keys and values. Whether a module has it is
tried, not read from its name: the call must give the bits of the module's own forward, which uses
the same native products.
Letters: B sequences, S tokens, D hidden, H heads, d head width.
"""

from __future__ import annotations

import ctypes
import inspect
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from engine.experts.kernels.native import NUMBERS
from engine.kv_cache.growing_layer import GrowingLayer
from engine.kv_cache.joined_kv import JoinedKv
from engine.model.native_attention import epsilon_of
from engine.native import library
from engine.native.values import MOST_BLOCKS, Block, Linear, Step, Store
from engine.run.native_linear import NativeLinear
from engine.run.quantized_linear import QuantizedLinear

_PARAMETERS = ("hidden_states", "position_embeddings", "attention_mask", "cache")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_CONTEXT_TOKENS = 5


def use_native_steps(model: nn.Module) -> None:
    """Make the attention layers of a model that has native linear layers decode in one call.

    Each layer is tried: some families leave out the rotation in some of their layers.
    """
    usual: list[Any] = [module for module in model.modules() if _looks_usual(module)]
    for module in usual:
        object.__setattr__(module, "_tried_widths", {})
        taken = [takes_width(module, width) for width in (module.head_dim, module.head_dim // 2)]
        if any(taken):
            object.__setattr__(module, "_whole_forward", module.forward)
            module.forward = types.MethodType(_forward, module)


def _forward(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: Any = None,
    attention_mask: torch.Tensor | None = None,
    cache: Any = None,
    **rest: Any,
) -> Any:
    """As the module's own forward."""
    if hidden_states.shape[1] == 1 and attention_mask is None and cache is not None:
        layers = _growing_layers(cache, self.layer_idx, len(hidden_states))
        if layers and not rest.get("output_attentions"):
            cosine, sine = position_embeddings
            width = cosine.shape[-1]
            # nothing can be tried while several micro-batches pass together
            known = len(layers) == 1 or width in self._tried_widths
            if cosine.dtype == hidden_states.dtype and known and takes_width(self, width):
                return _step(self, hidden_states, cosine, sine, layers), None
    return self._whole_forward(
        hidden_states, position_embeddings, attention_mask, cache=cache, **rest
    )


def _growing_layers(cache: Any, number: int, sequences: int) -> Sequence[GrowingLayer]:
    """Where each micro-batch keeps this layer's keys and values; none if the call cannot write
    there."""
    joined = isinstance(cache, JoinedKv)
    layers = cache.own_layers(number) if joined else [cache.layers[number]]
    if any(type(layer) is not GrowingLayer for layer in layers):
        return []
    return layers if sum(layer.sequences for layer in layers) == sequences else []


def takes_width(module: Any, width: int) -> bool:
    """Whether an attention layer of the usual structure turns this many columns of its heads as the
    native call does: it is tried once."""
    tried: dict[int, bool] = module.__dict__["_tried_widths"]
    if width not in tried:
        tried[width] = _agrees(module, width)
    return tried[width]


def has_native_step(module: Any) -> bool:
    """Whether an attention layer decodes in one call."""
    return getattr(getattr(module, "forward", None), "__func__", None) is _forward


def _step(
    module: Any,
    hidden: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    layers: Sequence[GrowingLayer],
) -> torch.Tensor:
    """hidden [B, 1, D], cosine and sine [B or 1, 1, d] -> [B, 1, D]. layers: of all B, in order."""
    made, step = module.__dict__.get("_native_step", (None, None))
    like = module.q_proj.first_address(), cosine.shape[-1]
    if made != like:
        step = described_step(module, cosine.shape[-1])
        object.__setattr__(module, "_native_step", (like, step))
    stores, end = (Store * len(hidden))(), 0
    for layer in layers:
        end = fill_stores(stores, end, layer)
    hidden = hidden.contiguous()
    out = torch.empty_like(hidden)
    library.current().step(
        step,
        hidden.data_ptr(),
        hidden.shape[0],
        cosine.data_ptr(),
        sine.data_ptr(),
        cosine.stride(0) if cosine.shape[0] > 1 else 0,
        stores,
        out.data_ptr(),
    )
    for layer in layers:
        layer.grown()
    return out


def fill_stores(stores: ctypes.Array[Store], first: int, layer: GrowingLayer) -> int:
    """Says in stores[first:] where the next token of each of a layer's sequences goes. Returns the
    index behind them."""
    keys, values, room, position = layer.make_room()
    count, apart = layer.sequences, layer.sequence_bytes
    for number in range(count):
        store = stores[first + number]
        store.keys, store.values = keys + number * apart, values + number * apart
        store.room, store.position = room, position
    return first + count


def _looks_usual(module: Any) -> bool:
    projections = [getattr(module, name, None) for name in _PROJECTIONS]
    if any(type(one) not in (NativeLinear, QuantizedLinear) for one in projections):
        return False
    names = ("head_dim", "scaling", "layer_idx", "config")
    if any(getattr(module, name, None) is None for name in names):
        return False
    parameters = inspect.signature(inspect.unwrap(type(module).forward)).parameters
    known = all(name in parameters for name in _PARAMETERS)
    square = module.o_proj.in_features == module.q_proj.out_features
    alike = module.k_proj.out_features == module.v_proj.out_features
    counts = [len(getattr(module, name).matrices()) for name in _PROJECTIONS]
    blocks = all(0 < count <= MOST_BLOCKS for count in counts)
    return known and square and alike and blocks and _has_usual_norms(module)


def _has_usual_norms(module: Any) -> bool:
    """No norms of queries and keys, or both over a head, or both over all heads."""
    norms = [getattr(module, name, None) for name in ("q_norm", "k_norm")]
    if norms == [None, None]:
        return True
    weights = [getattr(norm, "weight", None) for norm in norms]
    if not all(isinstance(weight, torch.Tensor) for weight in weights):
        return False
    sizes = [weight.numel() for weight in weights if weight is not None]
    whole = [module.q_proj.out_features, module.k_proj.out_features]
    known = all(weight.dtype in NUMBERS for weight in weights if weight is not None)
    return known and sizes in ([module.head_dim] * 2, whole)


def described_step(module: Any, rotated: int) -> Step:
    """How the module's weights lie, which must not move afterwards, and how many columns of a head
    are rotated."""
    step = Step()
    for field, name in zip(("query", "key", "value", "output"), _PROJECTIONS, strict=True):
        linear = getattr(module, name)
        matrices = linear.matrices()
        whole = Linear(len(matrices), linear.out_features)
        for number, (matrix, address) in enumerate(matrices):
            whole.blocks[number] = Block(matrix, address)
        setattr(step, field, whole)
    step.number = NUMBERS[_dtype(module)]
    step.width, step.rotated = module.head_dim, rotated
    step.heads = module.q_proj.out_features // module.head_dim
    step.key_heads = module.k_proj.out_features // module.head_dim
    step.scale = module.scaling
    step.clip = getattr(module.config, "clip_qkv", None) or 0.0
    if getattr(module, "q_norm", None) is not None:
        step.query_norm_width = module.q_norm.weight.numel()
        step.key_norm_width = module.k_norm.weight.numel()
        step.query_norm, step.key_norm = (
            norm.weight.data_ptr() for norm in (module.q_norm, module.k_norm)
        )
        step.query_epsilon, step.key_epsilon = map(epsilon_of, (module.q_norm, module.k_norm))
    return step


def _dtype(module: Any) -> torch.dtype:
    norm = getattr(module, "q_norm", None)
    found: torch.dtype = module.q_proj.compute_dtype() if norm is None else norm.weight.dtype
    return found


def _agrees(module: Any, rotated: int) -> bool:
    """Whether the native call gives the bits of the module's own forward, for two sequences and
    keys and values that it must not touch otherwise."""
    heads, width = module.k_proj.out_features // module.head_dim, module.head_dim
    generator = torch.Generator().manual_seed(0)
    dtype = _dtype(module)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    hidden, cosine, sine = (
        noise(2, 1, module.q_proj.in_features),
        noise(2, 1, rotated),
        noise(2, 1, rotated),
    )
    caches = []
    states = noise(2, 2, heads, _CONTEXT_TOKENS, width)
    for _ in range(2):
        cache = DynamicCache(config=module.config)
        if module.layer_idx >= len(cache.layers):
            return False
        layer = GrowingLayer(4 * _CONTEXT_TOKENS)
        layer.update(states[0], states[1])
        cache.layers[module.layer_idx] = layer
        caches.append(cache)
    try:
        with torch.inference_mode():
            expected = module(hidden, (cosine, sine), None, cache=caches[0])[0]
            found = _step(module, hidden, cosine, sine, [caches[1].layers[module.layer_idx]])
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    plain, native = (cache.layers[module.layer_idx] for cache in caches)
    pairs = ((expected, found), (plain.keys, native.keys), (plain.values, native.values))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
